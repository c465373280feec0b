"""Counts the activations of nnU-Net's U-Nets, which stand for their memory in its planner."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ssmvision.recipes.planning.budgets import Budget

__all__ = ["count_activations"]


def count_activations(
    budget: Budget, patch_size: Sequence[int], strides: Sequence[Sequence[int]], features: Sequence[int], classes: int
) -> int:
    """Values that all convolutions of the budget's U-Net write for one patch.

    Counts every convolution's output, transposed convolutions and the finest segmentation head included; kernel sizes
    and the number of input channels do not matter (`compute_conv_feature_map_size` of dynamic-network-architectures
    0.4, by which nnU-Net v2 plans).

    Args:
        budget: says which network, and how many blocks it has.
        patch_size: voxels per axis, divisible by the product of the strides.
        strides: per stage and axis, the first stage's included.
        features: channels per stage.
        classes: outputs of the segmentation head.
    """
    voxels, size = [], tuple(patch_size)
    for stride in strides:
        size = tuple(n // s for n, s in zip(size, stride, strict=True))
        voxels.append(prod(size))
    maps = [f * v for f, v in zip(features, voxels, strict=True)]
    blocks = budget.blocks(len(maps))
    if budget.residual:
        total = features[0] * prod(patch_size)  # the stem
        total += sum(2 * n * m for n, m in zip(blocks, maps, strict=True))
        total += sum(m for i, m in enumerate(maps) if _has_projection(i, strides, features))
    else:
        total = sum(n * m for n, m in zip(blocks, maps, strict=True))
    # A decoder level has its convolutions and the transposed one before them.
    levels = zip(budget.decoder_blocks(len(maps)), reversed(maps[:-1]), strict=True)
    return total + sum((n + 1) * m for n, m in levels) + classes * voxels[0]


def _has_projection(stage: int, strides: Sequence[Sequence[int]], features: Sequence[int]) -> bool:
    """Whether the shortcut of a stage's first residual block is counted: where it changes size or channels."""
    return any(s != 1 for s in strides[stage]) or features[stage] != features[max(stage - 1, 0)]
