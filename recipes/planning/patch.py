"""Chooses patch, stages and batch of one network under a memory budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ssmvision.errors import UserError
from ssmvision.recipes.planning.budgets import Budget
from ssmvision.recipes.planning.memory import count_activations
from ssmvision.recipes.segmentation.architecture import Topology, plan_topology

__all__ = ["PatchPlan", "plan_patch"]

# Edge of the cube (3D) or square (2D) whose volume the first, certainly too large, patch has.
START_EDGE = {2: 2048, 3: 256}
REFERENCE_BATCH = {2: 12, 3: 2}
MIN_BATCH = 2
BASE_FEATURES = 32
MAX_FEATURES = {2: 512, 3: 320}


@dataclass(frozen=True)
class PatchPlan:
    """Patch in voxels, its network's stages and channels, and patches per batch."""

    patch_size: tuple[int, ...]
    topology: Topology
    features: tuple[int, ...]
    batch_size: int


def plan_patch(
    spacing_mm: Sequence[float], median_shape: Sequence[float], dataset_voxels: float, classes: int, budget: Budget
) -> PatchPlan:
    """The largest patch of the budget that keeps the shape of the images, and the batch that fits with it.

    Starts from a patch with equal edges in mm, not larger than the median image, and shrinks the axis that covers the
    largest part of the median image until two patches fit (nnU-Net v2).

    Args:
        spacing_mm: voxel edges of the two or three axes.
        median_shape: voxels of the median image per axis; may end in .5.
        dataset_voxels: voxels of the median image times the number of cases.
        classes: labels, background included.
        budget: see `Budget`.

    Raises:
        UserError: not even the smallest patch fits the budget.
    """
    axes = len(spacing_mm)
    finest_first = [1 / edge for edge in spacing_mm]
    scale = (START_EDGE[axes] ** axes / math.prod(finest_first)) ** (1 / axes)
    start = [min(round(density * scale), n) for density, n in zip(finest_first, median_shape, strict=True)]
    allowed = budget.activations_2d if axes == 2 else budget.activations_3d
    # The count is of one patch, the budget of a reference batch.
    reference = REFERENCE_BATCH[axes]
    limit = allowed if budget.full_batch_2d else allowed * reference / MIN_BATCH

    patch, topology = _padded(start, spacing_mm)
    while (count := _count(budget, patch, topology, classes)) > limit:
        patch, topology = _padded(_shrunk(patch, topology, spacing_mm, median_shape, budget), spacing_mm)
    fitting = round(allowed / count * reference)
    covering = round(dataset_voxels * budget.dataset_share / math.prod(patch))
    return PatchPlan(patch, topology, _features(topology), max(min(fitting, covering), MIN_BATCH))


def _features(topology: Topology) -> tuple[int, ...]:
    highest = MAX_FEATURES[len(topology.strides[0])]
    return tuple(min(BASE_FEATURES * 2**i, highest) for i in range(len(topology.strides)))


def _count(budget: Budget, patch: tuple[int, ...], topology: Topology, classes: int) -> int:
    return count_activations(budget, patch, topology.strides, _features(topology), classes)


def _divisor(topology: Topology) -> tuple[int, ...]:
    return tuple(math.prod(stage) for stage in zip(*topology.strides, strict=True))


def _padded(size: Sequence[float], spacing_mm: Sequence[float]) -> tuple[tuple[int, ...], Topology]:
    """The stages for a size, and the size rounded up to what they divide."""
    topology = plan_topology(size, spacing_mm)
    return tuple(math.ceil(n / d) * d for n, d in zip(size, _divisor(topology), strict=True)), topology


def _shrunk(
    patch: tuple[int, ...],
    topology: Topology,
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    budget: Budget,
) -> list[int]:
    """The patch one step smaller along the axis that covers most of the median image (the last of equals)."""
    cover = [n / m for n, m in zip(patch, median_shape, strict=True)]
    axis = max(range(len(patch)), key=lambda a: (cover[a], a))
    smaller = list(patch)
    smaller[axis] -= _divisor(topology)[axis]
    # A smaller patch may have fewer stages and so a finer step; the coarse one would skip sizes that are valid.
    step = _divisor(plan_topology(smaller, spacing_mm))[axis]
    if len(topology.strides) == 1 or patch[axis] <= step:
        raise UserError(
            f"vram: {budget.vram_gb:g} GB leave no room for a patch (down to {list(patch)} voxels); give more memory"
        )
    return [n - step if a == axis else n for a, n in enumerate(patch)]
