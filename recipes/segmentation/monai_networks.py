"""SegResNet and MedNeXt as MONAI has them, baselines with the arguments and outputs of our networks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from monai.networks.nets.mednext import MedNeXt as MonaiMedNeXt
from monai.networks.nets.segresnet_ds import SegResNetDS, scales_for_resolution
from torch import Tensor

__all__ = ["MedNeXt", "SegResNet", "own_stages"]


class SegResNet(SegResNetDS):
    """MONAI's SegResNetDS, the network of Auto3DSeg (after Myronenko, arXiv 1810.11654), with instance norm.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        features_per_stage: channels per resolution, each twice those before.
        spacing_mm: voxel size per axis; the finest axes are halved alone until the others are less than twice as fine.
        n_conv_per_stage: residual blocks (two convolutions each) per encoder stage.
        n_conv_per_stage_decoder: residual blocks per decoder level, deepest first.
        deep_supervision: return every decoder level while training, finest first.

    Raises:
        ValueError: fewer than two stages, or channels that do not double.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features_per_stage: Sequence[int],
        spacing_mm: Sequence[float],
        n_conv_per_stage: Sequence[int],
        n_conv_per_stage_decoder: Sequence[int],
        deep_supervision: bool = True,
    ) -> None:
        first = _first_of_doubling("SegResNet", features_per_stage)
        super().__init__(
            spatial_dims,
            init_filters=first,
            in_channels=in_channels,
            out_channels=out_channels,
            norm="instance",
            blocks_down=tuple(n_conv_per_stage),
            blocks_up=tuple(n_conv_per_stage_decoder),
            dsdepth=len(features_per_stage) - 1 if deep_supervision else 1,
            resolution=tuple(spacing_mm),
        )


class MedNeXt(MonaiMedNeXt):
    """MONAI's MedNeXt (Roy et al., arXiv 2303.09975) with 3-voxel kernels and the expansion of its size S.

    Args:
        spatial_dims: 2 or 3.
        in_channels: image channels.
        out_channels: classes, background included.
        features_per_stage: channels per resolution, each twice those before; every stage halves every axis.
        n_conv_per_stage: blocks per encoder stage, the last one being the bottleneck.
        n_conv_per_stage_decoder: blocks per decoder level, deepest first.
        deep_supervision: return every level while training, finest first, the bottleneck's included.

    Raises:
        ValueError: fewer than two stages, or channels that do not double.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        features_per_stage: Sequence[int],
        n_conv_per_stage: Sequence[int],
        n_conv_per_stage_decoder: Sequence[int],
        deep_supervision: bool = True,
    ) -> None:
        first = _first_of_doubling("MedNeXt", features_per_stage)
        super().__init__(
            spatial_dims,
            init_filters=first,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=3,
            deep_supervision=deep_supervision,
            use_residual_connection=True,
            blocks_down=tuple(n_conv_per_stage[:-1]),
            blocks_bottleneck=n_conv_per_stage[-1],
            blocks_up=tuple(n_conv_per_stage_decoder),
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, out_channels, *spatial), or while training with deep supervision a list, finest first."""
        outputs: Any = super().forward(x)
        return list(outputs) if isinstance(outputs, tuple) else outputs


def _first_of_doubling(name: str, features: Sequence[int]) -> int:
    if len(features) < 2 or any(b != 2 * a for a, b in pairwise(features)):
        raise ValueError(f"{name} doubles its channels per stage from 2 stages on, got {list(features)}")
    return features[0]


def own_stages(name: str, patch_size: Sequence[int], spacing_mm: Sequence[float], most: int) -> int:
    """How many stages, `most` at most, the network's own strides leave with patches of whole, even numbers of voxels.

    Args:
        name: "SegResNet", whose strides go by voxel size, or "MedNeXt", which halves all axes.
        patch_size: voxels per axis.
        spacing_mm: voxel size per axis.
        most: stages of the plan.
    """
    dims, stages = len(patch_size), 1
    while stages < most:
        halvings = stages
        rows = [(2,) * dims] * halvings
        if name == "SegResNet":
            rows = [tuple(int(s) for s in row) for row in scales_for_resolution(tuple(spacing_mm), halvings)]
        divisors = [math.prod(axis) for axis in zip(*rows, strict=True)]
        if any(n % d or n // d < 2 for n, d in zip(patch_size, divisors, strict=True)):
            break
        stages += 1
    return stages
