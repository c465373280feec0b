"""Reads NIfTI volumes and refuses those whose header, geometry or voxels cannot be trusted."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ssmvision.errors import UserError

__all__ = [
    *("RGB24", "Grid", "Volume", "check_same_grid", "length_unit"),
    *("read_array", "read_grid", "read_image", "read_label_map"),
]

# Affines may differ by rounding in other tools; further apart than this share of a voxel edge they describe different
# places (a half-voxel shift, the commonest convention mistake, must be caught).
TOLERANCE_VOXELS = 0.25
DEFLATE_MAX_RATIO = 1032
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
# Units of length in the order of their codes in xyzt_units, which has a unit of time in its other bits.
UNIT_BITS = 7
MILLIMETRES = {"unknown": 1.0, "meter": 1e3, "mm": 1.0, "micron": 1e-3}


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
    """Voxels (C, X, Y, Z) float32 in stored axis order, and their grid."""

    data: NDArray[np.float32]
    grid: Grid


def _open(path: Path, colour: bool) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: the ending {path.suffix!r} is not NIfTI; convert it to .nii.gz")
    try:
        image = nibabel.load(path)
    except (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: not a readable NIfTI file ({_first_line(error)}); fetch or export it again") from None
    _check_header(path, image, colour)
    return image


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_header(path: Path, image: Any, colour: bool) -> None:
    """Bounds what the header promises by the real file size before any voxel is allocated."""
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    if dtype.kind not in "iuf" and not (colour and dtype == RGB24):
        raise UserError(f"{path}: voxels are of type {dtype}; save the image with integer or float voxels")
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise UserError(f"{path}: the header gives the shape {shape}; expected 2 to 4 axes of at least one voxel")
    need, size = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize, path.stat().st_size
    compressed = path.name.lower().endswith(".gz")
    if need > size * (DEFLATE_MAX_RATIO if compressed else 1):
        raise UserError(
            f"{path}: truncated or wrong header: shape {shape} of {dtype} needs {need} bytes, the file has {size}"
            f"{' (compressed)' if compressed else ''}; fetch or export it again"
        )
    unit = int(image.header["xyzt_units"]) & UNIT_BITS
    if unit >= len(MILLIMETRES):
        raise UserError(f"{path}: the unit of length has the code {unit}, which means none; set xyzt_units to 2 (mm)")
    affine = image.affine
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise UserError(
            f"{path}: the affine is {affine.tolist()}, no usable voxel size or direction; repair the header"
        )


def length_unit(header: Any) -> str:
    """Name of a NIfTI header's unit of length: "unknown" (read as mm), "meter", "mm" or "micron"."""
    return list(MILLIMETRES)[int(header["xyzt_units"]) & UNIT_BITS]


def _check_stream(path: Path) -> None:
    """Reads a compressed file to its end: only there are length and checksum, which nibabel does not reach."""
    if path.name.lower().endswith(".gz"):
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass


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
    image = _open(path, colour)
    try:
        data = np.asanyarray(image.dataobj)
        _check_stream(path)
    except (EOFError, OSError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path}: truncated or corrupt voxel data ({_first_line(error)}); fetch or export it again"
        ) from None
    data = data[..., None] if data.ndim == 2 else data
    if data.dtype.names is not None:
        data = np.stack([data[name] for name in "RGB"], -1)
    return data, _grid(path, image)


def read_grid(path: Path) -> Grid:
    """Where a file's voxels lie, from its header alone.

    Raises:
        UserError: missing, not NIfTI, or without a usable geometry.
    """
    return _grid(path, _open(path, colour=False))


def _grid(path: Path, image: Any) -> Grid:
    factor = MILLIMETRES[length_unit(image.header)]
    affine = np.diag([factor, factor, factor, 1.0]) @ np.asarray(image.affine, dtype=np.float64)
    x, y, z = (*(int(n) for n in image.shape[:3]), 1)[:3]
    return Grid(path, (x, y, z), affine, image.header, len(image.shape) == 2)


def read_image(paths: Sequence[Path | str], channels: Sequence[str] | None = None) -> Volume:
    """Reads the channels of one case.

    Args:
        paths: one file per channel, or one file whose fourth axis holds the channels.
        channels: names of the expected channels; None: as many as there are.

    Raises:
        UserError: a file is missing, corrupt, has non-finite voxels, lies on another grid than the first, or the
            number of channels is wrong.
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
    for part, file in zip(parts, grids, strict=True):
        _check_finite(file.path, part)
    return Volume(np.ascontiguousarray(np.concatenate(parts), dtype=np.float32), grid)


def _check_finite(path: Path, data: NDArray[Any]) -> None:
    bad = ~np.isfinite(data)
    if bad.any():
        first = [int(i) for i in np.argwhere(bad)[0][1:]]
        value = data[bad][0]
        raise UserError(
            f"{path}: {int(bad.sum())} voxel(s) are not finite, the first is {value} at {first}; "
            "replace them, for example by the background intensity"
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
            "resample one of them onto the other's grid"
        )
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array(expected.shape) - 1
    distance = float(np.linalg.norm(corners @ (found.affine - expected.affine).T, axis=1).max())
    limit = TOLERANCE_VOXELS * min(expected.spacing_mm)
    if distance > limit:
        raise UserError(
            f"{found.path}: affine differs from that of {expected.path}: a corner lies {distance:.3g} mm away "
            f"(allowed {limit:.3g} mm); found {found.affine.round(4).tolist()}, expected "
            f"{expected.affine.round(4).tolist()}; correct the header or resample"
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
        UserError: unreadable, non-integer or unknown ids (with their counts), or another grid than `like`.
    """
    data, grid = read_array(Path(path))
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise UserError(f"{grid.path}: a label map with the shape {data.shape}; give one id per voxel, three axes")
    if like is not None:
        check_same_grid(grid, like)
    _check_finite(grid.path, data[None])
    rounded = np.rint(data)
    # Scale factors in the header leave rounding noise on integers; anything coarser is not a label.
    off = np.abs(data - rounded) > 1e-4
    if off.any():
        values = np.unique(data[off])[:5].tolist()
        raise UserError(
            f"{grid.path}: {int(off.sum())} voxel(s) are not whole, such as {values}; resample by nearest neighbour"
        )
    found, counts = np.unique(rounded.astype(np.int64), return_counts=True)
    if ids is not None and not set(found.tolist()) <= set(ids):
        unknown = {int(i): int(n) for i, n in zip(found, counts, strict=True) if int(i) not in set(ids)}
        raise UserError(
            f"{grid.path}: label ids not in {sorted(ids)}, with their voxel counts: {unknown}; "
            "correct the map, or add the ids to 'labels' of dataset.json"
        )
    return rounded.astype(np.int32), grid
