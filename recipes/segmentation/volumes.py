"""Reads NIfTI volumes and refuses those whose header, geometry or voxels cannot be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.label_ids import count_ids, refuse_picture, refuse_unknown, whole_numbers
from ssmvision.recipes.segmentation.nifti import (
    MILLIMETRES,
    RGB24,
    UNIT_BITS,
    VolumeWarning,
    flag,
    open_nifti,
    read_voxels,
)

__all__ = [
    "RGB24",
    "Grid",
    "Volume",
    "VolumeWarning",
    "check_same_grid",
    "length_unit",
    "read_array",
    "read_grid",
    "read_image",
    "read_label_map",
]

# Affines may differ by rounding in other tools; further apart than this share of a voxel edge they describe different
# places (a half-voxel shift, the commonest convention mistake, must be caught).
TOLERANCE_VOXELS = 0.25


@dataclass(frozen=True)
class Grid:
    """Where a file's voxels lie.

    Args:
        path: the file.
        shape: three voxel counts (a 2D file has one slice).
        affine: (4, 4) float64, voxel index to millimetres (RAS+), whatever unit the file uses.
        header: the file's own header.
        stored_2d: the file has two axes.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    header: Any
    stored_2d: bool = False

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel edge lengths in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Volume:
    """Voxels in stored axis order, and their grid.

    Args:
        data: (C, X, Y, Z) float32, finite.
        grid: of the first channel.
        masked: (X, Y, Z), voxels that hold no measurement and whose values in `data` are made up; None: all do.
    """

    data: NDArray[np.float32]
    grid: Grid
    masked: NDArray[np.bool_] | None = None


def length_unit(header: Any) -> str:
    """Name of a NIfTI header's unit of length: "unknown" (read as mm), "meter", "mm" or "micron"."""
    return list(MILLIMETRES)[int(header["xyzt_units"]) & UNIT_BITS]


def read_array(path: Path, colour: bool = False) -> tuple[NDArray[Any], Grid]:
    """Reads a file's voxels as they are, with the scale factors of its header.

    Args:
        path: .nii or .nii.gz file.
        colour: take voxels of red, green and blue (RGB24) too.

    Returns:
        (X, Y, Z), or (X, Y, Z, C) of a file with four axes or, C = 3, with colour; and the grid.

    Raises:
        UserError: missing, damaged, of another type, or without a usable geometry.
    """
    image = open_nifti(path, colour)
    data = read_voxels(path, image)
    data = data[..., None] if data.ndim == 2 else data
    if data.dtype.names is not None:
        data = np.stack([data[name] for name in "RGB"], -1)
    return data, _grid(path, image)


def read_grid(path: Path) -> Grid:
    """Where a file's voxels lie, from its header alone.

    Raises:
        UserError: missing, not NIfTI, or without a usable geometry.
    """
    return _grid(path, open_nifti(path, colour=False))


def _grid(path: Path, image: Any) -> Grid:
    factor = MILLIMETRES[length_unit(image.header)]
    affine = np.diag([factor, factor, factor, 1.0]) @ np.asarray(image.affine, dtype=np.float64)
    x, y, z = (*(int(n) for n in image.shape[:3]), 1)[:3]
    return Grid(path, (x, y, z), affine, image.header, len(image.shape) == 2)


def read_image(
    paths: Sequence[Path | str],
    channels: Sequence[str] | None = None,
    unusable: Literal["refuse", "mask"] = "refuse",
) -> Volume:
    """Reads the channels of one case.

    Args:
        paths: one file per channel, or one file whose fourth axis holds the channels.
        channels: names of the expected channels; None: as many as there are.
        unusable: what to do about voxels that are not finite, and about channels of a single value, which hold no
            picture: "refuse" them, as training does; or "mask" them with a warning, as prediction does: `masked` marks
            them (all of the volume for a channel of a single value), non-finite ones take their channel's lowest value.

    Raises:
        UserError: a file is missing or corrupt, has unusable voxels ("refuse"), lies on another grid than the first, or
            the number of channels is wrong.
    """
    arrays, grids = zip(*(read_array(Path(path)) for path in paths), strict=True)
    grid: Grid = grids[0]
    for other in grids[1:]:
        check_same_grid(other, grid)
    parts = [np.moveaxis(a, 3, 0) if a.ndim == 4 else a[None] for a in arrays]
    found = sum(len(part) for part in parts)
    if channels is not None and found != len(channels):
        raise UserError(
            f"{grid.path}: {found} channel(s) found, {len(channels)} expected {list(channels)}; "
            "give one file per channel, CASE_0000.nii.gz, CASE_0001.nii.gz, ..."
        )
    if unusable == "refuse":
        for part, file in zip(parts, grids, strict=True):
            _check_finite(file.path, part)
            _check_varied(file.path, part)
        return Volume(np.ascontiguousarray(np.concatenate(parts), dtype=np.float32), grid)
    owners = [file.path for part, file in zip(parts, grids, strict=True) for _ in part]
    return _masked_volume(parts, grid, owners)


def usable_volume(data: NDArray[Any], grid: Grid) -> Volume:
    """Voxels (C, X, Y, Z) of any format on a grid, with what is unusable among them masked, see `read_image`."""
    return _masked_volume([data], grid, [grid.path] * len(data))


def _masked_volume(parts: Sequence[NDArray[Any]], grid: Grid, owners: Sequence[Path]) -> Volume:
    # float32 first: what overflows there is no measurement either.
    with np.errstate(over="ignore"):
        voxels = np.ascontiguousarray(np.concatenate(parts), dtype=np.float32)
    return Volume(voxels, grid, _mask_unusable(owners, voxels))


def _mask_unusable(paths: Sequence[Path], data: NDArray[np.float32]) -> NDArray[np.bool_] | None:
    """Marks (X, Y, Z) and fills, in place, what is not finite in any channel; all of it for a constant channel."""
    masked: NDArray[np.bool_] | None = None
    for path, channel in zip(paths, data, strict=True):
        bad = ~np.isfinite(channel)
        count = int(bad.sum())
        if count:
            good = channel[~bad]
            channel[bad] = good.min() if len(good) else 0.0
            flag(
                path, f"{count} of {channel.size} voxel(s) are not finite", "they are labelled as background: mend them"
            )
            masked = bad if masked is None else masked | bad
        if channel.size > 1 and channel.min() == channel.max():
            problem = f"every {'other ' if count else ''}voxel is {channel.flat[0]:g}, there is nothing to segment"
            flag(path, problem, "all of it is labelled as background: export it again")
            masked = np.ones(channel.shape, np.bool_)
    return masked


def _check_finite(path: Path, data: NDArray[Any]) -> None:
    bad = ~np.isfinite(data)
    if bad.any():
        first = [int(i) for i in np.argwhere(bad)[0][1:]]
        value = data[bad][0]
        raise UserError(
            f"{path}: {int(bad.sum())} voxel(s) are not finite, the first is {value} at {first}; "
            "replace them, for example by the background intensity"
        )


def _check_varied(path: Path, data: NDArray[Any]) -> None:
    for channel in data:
        if channel.size > 1 and channel.min() == channel.max():
            raise UserError(
                f"{path}: every voxel is {channel.flat[0]:g}, which shows nothing; export it again, or remove the case"
            )


def check_same_grid(found: Grid, expected: Grid) -> None:
    """Refuses two files that do not cover the same voxels.

    Corners of the volume may lie up to 0.25 of the smallest voxel edge apart: rounding passes, a shift by half a voxel,
    a flip or exchanged axes do not.

    Raises:
        UserError: shape or affine differ.
    """
    if found.shape != expected.shape:
        raise UserError(
            f"{found.path}: shape {found.shape} differs from {expected.shape} of {expected.path}; "
            "resample one of them onto the other's grid (ssmvision align)"
        )
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array(expected.shape) - 1
    distance = float(np.linalg.norm(corners @ (found.affine - expected.affine).T, axis=1).max())
    limit = TOLERANCE_VOXELS * min(expected.spacing_mm)
    if distance > limit:
        raise UserError(
            f"{found.path}: affine differs from that of {expected.path}: a corner lies {distance:.3g} mm away "
            f"(allowed {limit:.3g} mm); found {found.affine.round(4).tolist()}, expected "
            f"{expected.affine.round(4).tolist()}; correct the header or resample (ssmvision align)"
        )


def read_label_map(
    path: Path | str, ids: Sequence[int] | None = None, like: Grid | None = None
) -> tuple[NDArray[np.int32], Grid]:
    """Reads a label map (X, Y, Z).

    Args:
        path: the file.
        ids: allowed ids; None: any integer.
        like: grid that it must lie on.

    Raises:
        UserError: unreadable, non-integer or unknown ids (with their counts and a suggested mapping), or another grid
            than `like`.
    """
    refuse_picture(Path(path))
    data, grid = read_array(Path(path))
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise UserError(f"{grid.path}: a label map with the shape {data.shape}; give one id per voxel, three axes")
    if like is not None:
        check_same_grid(grid, like)
    _check_finite(grid.path, data[None])
    whole = whole_numbers(grid.path, data)
    if ids is not None:
        refuse_unknown(grid.path, count_ids(whole), ids)
    return whole.astype(np.int32), grid
