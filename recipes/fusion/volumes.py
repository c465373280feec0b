"""Volumes for fusion: reading, slicing as a picture is looked at, and writing on the grid of the first one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.sources import Source, check_finite
from ssmvision.recipes.fusion.windows import Window, volume_window
from ssmvision.recipes.segmentation.volumes import RGB24, Grid, check_same_grid, read_array
from ssmvision.recipes.segmentation.writing import GEOMETRY, type_of_image, write_atomic

__all__ = [
    "ENDINGS",
    "Axis",
    "as_slices",
    "check_registered",
    "from_slices",
    "read_nifti",
    "resampled",
    "slicing_axis",
    "write_nifti",
]

ENDINGS = (".nii", ".nii.gz")
# Slices are looked at with the patient's left on the right, front or top up (as radiologists do).
_LEFT_BACK_DOWN = axcodes2ornt(("L", "P", "I"))
_ACROSS = {"sagittal": 0, "coronal": 1, "axial": 2}
# Beyond this ratio of voxel edges, slices are those that the scanner made.
_THICK = 1.5
Axis = Literal["auto", "axial", "coronal", "sagittal"]
_WHITE = Window(0, 255)


def read_nifti(path: Path, window: Window | None = None) -> Source:
    """A volume as stored, gray or RGB24.

    Args:
        path: .nii or .nii.gz file of three axes, or of four with a last one of 1.
        window: stored values of black and white; None is the smallest and largest of the whole volume, or 0 to 255
            with colour.

    Raises:
        UserError: missing, damaged, of several volumes, without a usable geometry, or with values that are not finite.
    """
    values, grid = read_array(path, colour=True)
    dtype = np.dtype(grid.header.get_data_dtype())
    coloured = dtype == RGB24
    if values.ndim == 4 and not coloured and values.shape[3] == 1:
        values = values[..., 0]
    if values.ndim != (4 if coloured else 3):
        shape = grid.header.get_data_shape()
        raise UserError(f"{path}: has the shape {shape}; give one volume of three axes, and split series into files")
    check_finite(path, values)
    automatic = _WHITE if coloured else volume_window(values)
    proxy: Any = nibabel.load(path).dataobj  # type: ignore[attr-defined]
    return Source(path, values, window or automatic, dtype, grid, scale=(float(proxy.slope), float(proxy.inter)))


def check_registered(a: Source, b: Source) -> None:
    """Refuses two volumes that do not cover the same voxels.

    Raises:
        UserError: with shapes or affines, and what can be done.
    """
    assert a.grid is not None
    assert b.grid is not None
    try:
        check_same_grid(b.grid, a.grid)
    except UserError as error:
        raise UserError(f"{error}; --resample brings {b.path.name} onto the grid of {a.path.name}") from None


def resampled(source: Source, grid: Grid) -> Source:
    """A volume on another grid by linear interpolation; black where it does not reach. Nothing is registered.

    Raises:
        UserError: the two do not overlap anywhere.
    """
    assert source.grid is not None
    parts = np.moveaxis(source.values, 3, 0) if source.is_coloured else source.values[None]
    affine = source.grid.affine
    inside = _resampled(np.ones(source.shape), affine, grid, 0)
    if not inside.any():
        raise UserError(
            f"{source.path}: nothing of it lies within {grid.path}: centres {_centre(source.grid)} and {_centre(grid)} "
            "mm; check that both are of one patient and coordinate system"
        )
    moved = [_resampled(part.astype(np.float64), affine, grid, source.window.low) for part in parts]
    values = np.stack(moved, -1) if source.is_coloured else moved[0]
    return replace(source, values=values, grid=grid)


def _resampled(values: NDArray[np.float64], affine: NDArray[np.float64], grid: Grid, outside: float) -> NDArray[Any]:
    image = nibabel.Nifti1Image(values, affine)
    moved = resample_from_to(image, (grid.shape, grid.affine), order=1, mode="constant", cval=outside)
    return np.asarray(moved.get_fdata())


def _centre(grid: Grid) -> list[float]:
    middle = [(n - 1) / 2 for n in grid.shape]
    return [round(float(x), 1) for x in (grid.affine @ [*middle, 1])[:3]]


def slicing_axis(grid: Grid, axis: Axis) -> Literal["axial", "coronal", "sagittal"]:
    """The named direction; "auto" is across the thickest voxel edge where it stands out, else axial."""
    if axis != "auto":
        return axis
    spacing = grid.spacing_mm
    thick = int(np.argmax(spacing))
    if grid.shape[thick] == 1 or spacing[thick] > _THICK * sorted(spacing)[1]:
        orientation = io_orientation(grid.affine)
        name: Literal["axial", "coronal", "sagittal"] = ("sagittal", "coronal", "axial")[int(orientation[thick, 0])]
        return name
    return "axial"


def as_slices(values: NDArray[Any], affine: NDArray[np.float64], axis: str) -> NDArray[Any]:
    """A volume (X, Y, Z, ...) as upright slices (S, H, W, ...): exact, by flips and exchanged axes only."""
    turned = apply_orientation(values, ornt_transform(io_orientation(affine), _LEFT_BACK_DOWN))
    return np.swapaxes(np.moveaxis(turned, _ACROSS[axis], 0), 1, 2)


def from_slices(slices: NDArray[Any], affine: NDArray[np.float64], axis: str) -> NDArray[Any]:
    """The inverse of `as_slices`."""
    turned = np.moveaxis(np.swapaxes(slices, 1, 2), 0, _ACROSS[axis])
    return np.asarray(apply_orientation(turned, ornt_transform(_LEFT_BACK_DOWN, io_orientation(affine))))


def write_nifti(
    path: Path,
    values: NDArray[Any],
    grid: Grid,
    dtype: np.dtype[Any],
    scale: tuple[float, float] = (1.0, 0.0),
    same_numbers: bool = False,
) -> None:
    """Writes a fused volume with the header of a grid, whole or not at all, and compares what it reads back.

    All header fields stay but those of the numbers themselves; extensions, which describe the original's, are left out.

    Args:
        path: .nii or .nii.gz file; an older one is replaced.
        values: (X, Y, Z) gray, or (X, Y, Z, 3) uint8, which is stored as RGB24.
        grid: whose affine, codes, units and descriptions the file gets.
        dtype: of the stored numbers, where gray.
        scale: slope and intercept that make `values` of the stored numbers.
        same_numbers: the range that viewers should show, in the header, fits these values too.

    Raises:
        UserError: another ending, or the disk refused the file.
    """
    check_storable(path)
    coloured = values.ndim == 4
    dtype = RGB24 if coloured else dtype
    stored = _as_rgb24(values) if coloured else _stored(values, dtype, scale)
    stored = stored[..., 0] if grid.stored_2d else stored
    header = _header(grid, dtype, stored.shape, same_numbers and not coloured)
    image = type_of_image(grid)(stored, header.get_best_affine(), header)
    if scale != (1.0, 0.0):
        # Numbers are then written as they are; an image made with such a header forgets it.
        image.header.set_slope_inter(*scale)

    def write(temporary: Path) -> None:
        nibabel.save(image, temporary)
        _compare(temporary, path, stored, scale, grid)

    write_atomic(path, write, ".nii.gz" if path.name.lower().endswith(".gz") else ".nii")


def check_storable(path: Path) -> None:
    """Refuses a name that is not NIfTI's.

    Raises:
        UserError: with the endings to take.
    """
    if not path.name.lower().endswith(ENDINGS):
        raise UserError(f"{path}: a volume needs a NIfTI name; end it in .nii.gz or .nii")


def _header(grid: Grid, dtype: np.dtype[Any], shape: tuple[int, ...], same_numbers: bool) -> Any:
    header = grid.header.copy()
    header.extensions.clear()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    for name in GEOMETRY:  # of axes that the array lacks, too
        header[name] = grid.header[name]
    if not same_numbers:
        # 0 leaves the choice to the viewer.
        header["cal_min"], header["cal_max"] = 0, 0
    return header


def _as_rgb24(values: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(values, dtype=np.uint8).view(RGB24)[..., 0]


def _stored(values: NDArray[Any], dtype: np.dtype[Any], scale: tuple[float, float]) -> NDArray[Any]:
    """Numbers that the header's scale turns into `values`."""
    if scale == (1.0, 0.0):
        return values.astype(dtype)
    numbers = (values.astype(np.float64) - scale[1]) / scale[0]
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        numbers = np.clip(np.rint(numbers), limits.min, limits.max)
    return numbers.astype(dtype)


def _compare(temporary: Path, path: Path, stored: NDArray[Any], scale: tuple[float, float], grid: Grid) -> None:
    image: Any = nibabel.load(temporary)
    if not np.array_equal(image.dataobj.get_unscaled(), stored):
        raise UserError(f"{path}: the voxels read back differ from those written; check the disk and try again")
    if not np.allclose((image.dataobj.slope, image.dataobj.inter), scale, rtol=1e-6):
        raise UserError(f"{path}: the scale reads back as {image.dataobj.slope}, expected {scale[0]}; report this file")
    for name in GEOMETRY:
        found, expected = image.header[name], grid.header[name]
        if not np.array_equal(found, expected, equal_nan=True):
            raise UserError(f"{path}: header field {name} reads back as {found}, expected {expected}; report this file")
