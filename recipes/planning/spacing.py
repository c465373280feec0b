"""Chooses the voxel size to train at, and the order of the axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["coarsest_first", "resampled_shape", "target_spacing"]

ANISOTROPY = 3.0


def target_spacing(spacings: Sequence[Sequence[float]], shapes: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """The median voxel size of the cases; a coarse axis with few slices takes a finer one.

    An axis counts as coarse if its median voxel edge is more than three times every other and its median number of
    voxels less than a third of every other: there the 10th percentile is used, as interpolating all cases to the
    median would blur those scanned finer (Isensee et al., Nature Methods 2021, supplementary note 2; nnU-Net v2).

    Args:
        spacings: voxel edges in mm, per case and axis.
        shapes: voxels, per case and axis.
    """
    target = np.percentile(np.array(spacings, dtype=np.float64), 50, axis=0)
    size = np.percentile(np.array(shapes), 50, axis=0)
    coarse = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != coarse]
    coarsest_other = max(target[others])
    if target[coarse] > ANISOTROPY * coarsest_other and size[coarse] * ANISOTROPY < min(size[others]):
        finer = np.percentile([row[coarse] for row in spacings], 10)
        # It stays the coarsest axis, by a hair where it has to: the order of the axes hangs on it.
        target[coarse] = finer if finer >= coarsest_other else coarsest_other + 1e-5
    return target


def coarsest_first(spacing: Sequence[float] | NDArray[np.float64]) -> tuple[int, ...]:
    """Order of the axes for training: the coarsest (the first of equals) leads, so that 2D slices lie across it."""
    coarse = int(np.argmax(spacing))
    return (coarse, *(axis for axis in range(len(spacing)) if axis != coarse))


def resampled_shape(
    shape: Sequence[int], spacing: Sequence[float], target: Sequence[float] | NDArray[np.float64]
) -> tuple[int, ...]:
    """Voxels per axis after resampling from `spacing` to `target`; halves are rounded to even."""
    return tuple(round(float(s / t * n)) for n, s, t in zip(shape, spacing, target, strict=True))
