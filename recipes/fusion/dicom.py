"""Reads a DICOM series as one volume, or says why it is none; needs pydicom (the extra `dicom`)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.sources import Source, check_finite
from ssmvision.recipes.fusion.windows import Window, volume_window
from ssmvision.recipes.segmentation.volumes import RGB24, Grid

__all__ = ["is_dicom", "is_series", "read_dicom"]

ENDINGS = (".dcm", ".ima")
_OTHERS = (".nii", ".nii.gz", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
_MAGIC_AT, _MAGIC = 128, b"DICM"
# Share of a slice distance by which positions, and of a pixel by which slices aside of each other, may be off.
_TOLERANCE = 0.02
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def is_series(folder: Path) -> bool:
    """Whether a folder directly holds DICOM files, and no pictures or NIfTI files."""
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    return not any(path.name.lower().endswith(_OTHERS) for path in files) and any(map(is_dicom, files))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or its first bytes."""
    if path.suffix.lower() in ENDINGS:
        return True
    with path.open("rb") as file:
        file.seek(_MAGIC_AT)
        return file.read(len(_MAGIC)) == _MAGIC


def read_dicom(path: Path, window: Window | None = None) -> Source:
    """One file, or the series in a folder, as a volume with the scanner's geometry.

    Args:
        path: a file, or a folder with one series.
        window: stored values of black and white; None is the smallest and largest of the whole volume, or 0 to 255
            with colour.

    Raises:
        UserError: several series, a missing or repeated slice, slices of different sizes or directions, a tilted
            gantry, several frames in a file, or pixels that cannot be decoded, the file being named; or pydicom is not
            installed.
    """
    files = sorted(p for p in path.iterdir() if p.is_file() and is_dicom(p)) if path.is_dir() else [path]
    slices = [(file, data) for file in files if (data := _opened(file)) is not None]
    _check_one_series(path, slices)
    slices, affine = _ordered(path, slices)
    stack = _narrowest(np.stack([_pixels(file, data) for file, data in slices]))
    values = np.ascontiguousarray(np.swapaxes(stack, 0, 2))
    coloured = values.ndim == 4
    check_finite(path, values)
    grid = Grid(path, (values.shape[0], values.shape[1], values.shape[2]), affine, _header(affine))
    automatic = Window(0, 255) if coloured else volume_window(values)
    return Source(path, values, window or automatic, RGB24 if coloured else values.dtype, grid)


def _opened(file: Path) -> Any:
    """The data set; None of a file without an image, such as contours, a segmentation or the index of a disc."""
    try:
        import pydicom
    except ModuleNotFoundError:
        raise UserError(
            f"{file}: DICOM needs pydicom, which is not installed: pip install 'ssmvision[dicom]', or convert the "
            "series to NIfTI, for example with dcm2niix"
        ) from None
    try:
        data = pydicom.dcmread(file)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file}: not a readable DICOM file ({error}); fetch or export it again") from None
    if "PixelData" not in data or data.get("Modality") == "SEG":
        return None
    needed = ("Rows", "Columns", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    missing = [name for name in needed if name not in data or data[name].is_empty]
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise UserError(f"{file}: holds {data.NumberOfFrames} frames; convert it to NIfTI, for example with dcm2niix")
    if missing:
        raise UserError(f"{file}: has no {', '.join(missing)}, so its place in space is unknown; export it again")
    kind = str(data.get("PhotometricInterpretation"))
    if kind not in ("MONOCHROME2", "RGB"):
        raise UserError(f"{file}: its pixels are {kind}; convert them to MONOCHROME2 or RGB, or the series to NIfTI")
    return data


def _check_one_series(path: Path, slices: Sequence[tuple[Path, Any]]) -> None:
    if not slices:
        raise UserError(f"{path}: 0 DICOM images found; give the folder of one series")
    series = {str(data.get("SeriesInstanceUID")) for _, data in slices}
    if len(series) > 1:
        raise UserError(f"{path}: holds {len(series)} series; put each into a folder of its own")
    first_file, first = slices[0]
    for file, data in slices[1:]:
        for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "PhotometricInterpretation"):
            same = (
                data[name].value == first[name].value
                if isinstance(data[name].value, int | str)
                else np.allclose(_numbers(data, name), _numbers(first, name), atol=1e-4)
            )
            if not same:
                raise UserError(
                    f"{file}: {name} is {data[name].value}, but {first[name].value} in {first_file.name}; "
                    "put slices of one size and direction into a folder"
                )


def _numbers(data: Any, name: str) -> NDArray[np.float64]:
    return np.array([float(value) for value in data[name].value])


def _ordered(path: Path, slices: Sequence[tuple[Path, Any]]) -> tuple[list[tuple[Path, Any]], NDArray[np.float64]]:
    """Slices along their normal, and the affine (4, 4) to millimetres (RAS+) of the stacked (column, row, slice)."""
    first = slices[0][1]
    directions = _numbers(first, "ImageOrientationPatient").reshape(2, 3)
    normal = np.cross(*directions)
    ordered = sorted(slices, key=lambda item: float(_numbers(item[1], "ImagePositionPatient") @ normal))
    positions = np.array([_numbers(data, "ImagePositionPatient") for _, data in ordered])
    spacing = _numbers(first, "PixelSpacing")
    step = normal * float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1)
    if len(ordered) > 1:
        _check_gaps(path, [file.name for file, _ in ordered], positions @ normal)
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
        aside = float(np.linalg.norm(step - (step @ normal) * normal))
        if aside > _TOLERANCE * spacing.min():
            degrees = float(np.degrees(np.arctan2(aside, step @ normal)))
            raise UserError(f"{path}: the gantry was tilted by {degrees:.1f} degrees; straighten the series first")
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = directions[0] * spacing[1], directions[1] * spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return ordered, _LPS_TO_RAS @ affine


def _check_gaps(path: Path, names: Sequence[str], places: NDArray[np.float64]) -> None:
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    for gap, (before, after) in zip(gaps, pairwise(names), strict=True):
        if gap <= _TOLERANCE * max(usual, 1e-3):
            raise UserError(f"{path}: {before} and {after} lie at one place; leave one of them out")
        if abs(gap - usual) > _TOLERANCE * usual:
            raise UserError(
                f"{path}: {before} and {after} are {gap:.3f} mm apart, the others {usual:.3f} mm; "
                "a slice is missing or the distances differ: complete or resample the series"
            )


def _pixels(file: Path, data: Any) -> NDArray[Any]:
    """(rows, columns), or with a last axis of 3, in the unit that the file's rescaling gives."""
    try:
        pixels = np.asarray(data.pixel_array)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{file}: its pixels cannot be decoded ({error}); decompress the series first") from None
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise UserError(f"{file}: has colours of {pixels.dtype}; convert them to 8 bits")
        return pixels
    slope, intercept = (
        float(data.get(name, default)) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0))
    )
    values = pixels * slope + intercept
    # int32 holds every rescaled integer; a fraction anywhere makes the whole stack float when it is put together.
    return values.astype(np.int32 if slope.is_integer() and intercept.is_integer() else np.float32)


def _narrowest(stack: NDArray[Any]) -> NDArray[Any]:
    """In 16-bit integers, as scanners store, where these hold it; else int32 or float32."""
    if stack.dtype == np.uint8:
        return stack
    if stack.dtype.kind == "f":
        return stack.astype(np.float32)
    limits = np.iinfo(np.int16)
    return stack.astype(np.int16) if limits.min <= stack.min() and stack.max() <= limits.max else stack


def _header(affine: NDArray[np.float64]) -> Any:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    return header
