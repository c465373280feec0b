"""Brings a volume onto another one's grid by their affines: the opt-in mend for files that training refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from scipy.ndimage import affine_transform

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.align_config import AlignConfig
from ssmvision.recipes.segmentation.label_ids import count_ids, some_of, whole_numbers
from ssmvision.recipes.segmentation.volumes import Grid, read_array, read_grid
from ssmvision.recipes.segmentation.writing import check_free, write_label_map, write_map

__all__ = ["resample_to", "run"]


def run(config: AlignConfig) -> Path:
    """Writes the volume on the other grid, says what became of each label, and returns the path.

    Raises:
        UserError: a file is unusable, the volumes do not overlap, a label got lost, or the output exists.
    """
    check_free(config.output, config.overwrite, [config.source, config.like])
    data, grid = read_array(config.source)
    like = read_grid(config.like)
    if data.ndim == 4:
        raise UserError(f"{config.source}: has four axes, {data.shape}; give one volume, three axes")
    if not np.isfinite(data).all():
        raise UserError(f"{config.source}: {int((~np.isfinite(data)).sum())} voxel(s) are not finite; replace them")
    console = Console(stderr=True)
    if not _is_label_map(config, data):
        if config.mapping:
            raise UserError(f"{config.source}: mapping is for label maps, this is resampled as an image; leave it out")
        image = resample_to(data.astype(np.float32), grid, like, order=1, outside=float(data.min()))
        write_map(config.output, image, like, config.overwrite)
        return config.output
    labels = _renumbered(config.source, whole_numbers(config.source, data), config.mapping or {})
    moved = resample_to(labels, grid, like, order=0, outside=0)
    before, after = count_ids(labels), count_ids(moved)
    ml = [np.prod(g.spacing_mm) / 1000 for g in (grid, like)]
    for i, count in before.items():
        if i != 0:
            line = f"label {i}: {count} voxels ({count * ml[0]:.3g} ml) became {after.get(i, 0)}"
            console.print(f"{line} ({after.get(i, 0) * ml[1]:.3g} ml)", markup=False, highlight=False)
    lost = {i: n for i, n in before.items() if i not in after and i != 0}
    if lost:
        raise UserError(
            f"{config.source}: label(s) {some_of(lost)} (id: voxels) have no voxel on the grid of {config.like}; "
            "the volumes show different places or the grid is too coarse: correct the header"
        )
    write_label_map(config.output, moved, like, config.overwrite)
    return config.output


def _is_label_map(config: AlignConfig, data: NDArray[Any]) -> bool:
    if config.interpolation == "auto":
        return bool((data == np.rint(data)).all() and data.min() >= 0)
    return config.interpolation == "nearest"


def _renumbered(path: Path, ids: NDArray[np.int64], mapping: Mapping[int, int]) -> NDArray[np.int64]:
    found = count_ids(ids)
    unknown = sorted(set(mapping) - set(found))
    if unknown:
        raise UserError(f"{path}: mapping names the ids {unknown}, which it does not hold; it has {some_of(found)}")
    new = {i: mapping.get(i, i) for i in found}
    if min(new.values()) < 0:
        raise UserError(f"{path}: label id {min(new.values())} is below 0; give it another id by mapping")
    values = np.array([new[i] for i in sorted(new)])
    return np.asarray(values[np.searchsorted(sorted(new), ids)], dtype=np.int64)


def resample_to(data: NDArray[Any], grid: Grid, like: Grid, order: int, outside: float) -> NDArray[Any]:
    """Values (X, Y, Z) on another grid.

    Args:
        data: values on `grid`.
        grid, like: from where to where.
        order: 0 for the nearest voxel, 1 for linear interpolation.
        outside: value of voxels that `data` does not cover.
    """
    matrix = np.linalg.solve(grid.affine, like.affine)
    # Rounding in the header's 32-bit numbers must not push voxels off a grid that is the same.
    near = np.rint(matrix * 1e5) / 1e5
    matrix = np.where(np.abs(matrix - near) < 1e-6, near, matrix)
    return np.asarray(
        affine_transform(
            data, matrix[:3, :3], matrix[:3, 3], like.shape, order=order, mode="grid-constant", cval=outside
        )
    )
