"""Opens NIfTI files: what a header promises is bounded by the file's size before any voxel is read.

Headers that contradict themselves are refused; what has only one sound reading is read, with a `VolumeWarning` that
names the file.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ssmvision.errors import UserError

__all__ = ["MILLIMETRES", "RGB24", "UNIT_BITS", "VolumeWarning", "flag", "flags_to", "open_nifti", "read_voxels"]

DEFLATE_MAX_RATIO = 1032
RGB24 = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
# Units of length in the order of their codes in xyzt_units, which has a unit of time in its other bits.
UNIT_BITS = 7
MILLIMETRES = {"unknown": 1.0, "meter": 1e3, "mm": 1.0, "micron": 1e-3}
# Voxel edges in mm that somebody may have measured: from far below a microscope's to far above a body's.
SMALLEST_EDGE, LARGEST_EDGE = 1e-7, 1e4
DAMAGED = (
    *(ImageFileError, HeaderDataError, EOFError, OSError, ValueError, OverflowError, MemoryError),
    *(struct.error, zlib.error),
)


class VolumeWarning(UserWarning):
    """A file was read although something about it should be looked at; the message names it."""


def flag(path: Path, problem: str, fix: str) -> None:
    """Warns about a file."""
    warnings.warn(f"{path}: {problem}; {fix}", VolumeWarning, stacklevel=2)


@contextmanager
def flags_to(tell: Callable[[str], None]) -> Iterator[None]:
    """Hands every `VolumeWarning` of the block to `tell` at its end, each text once; other warnings are passed on."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", VolumeWarning)
        try:
            yield
        finally:
            for text in dict.fromkeys(str(w.message) for w in told if issubclass(w.category, VolumeWarning)):
                tell(text)
    for other in told:
        if not issubclass(other.category, VolumeWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


def first_line(error: BaseException) -> str:
    """The first line of an exception's message; its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def open_nifti(path: Path, colour: bool) -> Any:
    """A nibabel image whose header can be trusted as far as that can be told without its voxels.

    Args:
        path: .nii or .nii.gz file.
        colour: take voxels of red, green and blue (RGB24) too.

    Raises:
        UserError: missing, no NIfTI file, or a header that cannot be right.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: the ending {path.suffix!r} is not NIfTI; convert it to .nii.gz")
    try:
        with _repairs_flagged(path):
            image: Any = nibabel.load(path)
            affine = image.affine
            int(image.dataobj.offset)
            with nibabel.openers.ImageOpener(str(path)) as stream:
                raw = type(image.header).from_fileobj(stream, check=False)
    except DAMAGED as error:
        raise UserError(f"{path}: not a readable NIfTI file ({first_line(error)}); fetch or export it again") from None
    _check_size(path, image, colour)
    _check_affine(path, image, affine)
    _check_unmended(path, image, raw)
    return image


@contextmanager
def _repairs_flagged(path: Path) -> Iterator[None]:
    """Turns what nibabel mends in a header while reading, and only logs, into warnings that name the file."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("nibabel.global")
    others, logger.handlers = logger.handlers, [handler]
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            yield
    finally:
        logger.handlers = others
    for message in dict.fromkeys(said):
        flag(path, f"the header is at fault: {message}", "write the file again with a valid header")


def _is_compressed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _promised_bytes(image: Any) -> int:
    return math.prod(int(n) for n in image.shape) * int(image.dataobj.dtype.itemsize)


def _check_size(path: Path, image: Any, colour: bool) -> None:
    shape, dtype = tuple(int(n) for n in image.shape), image.get_data_dtype()
    if dtype.kind not in "iuf" and not (colour and dtype == RGB24):
        raise UserError(f"{path}: voxels are of type {dtype}; save the image with integer or float voxels")
    if len(shape) not in (2, 3, 4) or min(shape) < 1:
        raise UserError(f"{path}: the header gives the shape {shape}; expected 2 to 4 axes of at least one voxel")
    need, size, packed = _promised_bytes(image), path.stat().st_size, _is_compressed(path)
    if need > size * (DEFLATE_MAX_RATIO if packed else 1):
        raise UserError(
            f"{path}: truncated or wrong header: shape {shape} of {dtype} needs {need} bytes, the file has {size}"
            f"{' (compressed)' if packed else ''}; fetch or export it again"
        )


def _check_affine(path: Path, image: Any, affine: NDArray[np.float64]) -> None:
    unit = int(image.header["xyzt_units"]) & UNIT_BITS
    if unit >= len(MILLIMETRES):
        raise UserError(f"{path}: the unit of length has the code {unit}, which means none; set xyzt_units to 2 (mm)")
    factor = list(MILLIMETRES.values())[unit]
    with np.errstate(over="ignore", invalid="ignore"):
        edges = np.linalg.norm(affine[:3, :3], axis=0) * factor
        sane = bool(np.isfinite(affine).all() and (edges > SMALLEST_EDGE).all() and (edges < LARGEST_EDGE).all())
        # The volume of a voxel with edges of one: 1 for a straight one, 0 where two axes are the same.
        volume = abs(np.linalg.det(affine[:3, :3] * factor / edges)) if sane else 0.0
    if volume < 1e-6:
        raise UserError(
            f"{path}: the affine is {affine.tolist()}, no usable voxel size or direction; repair the header"
        )


def _check_unmended(path: Path, image: Any, raw: Any) -> None:
    """Looks at fields that nibabel sets right without a word, where other programs would read them otherwise."""
    handed, header = float(raw["pixdim"][0]), image.header
    if int(header["sform_code"]) == 0 < int(header["qform_code"]) and handed < 0 and handed != -1:
        raise UserError(
            f"{path}: pixdim[0] is {handed:g}, which some programs read as -1 and others as 1 (the third axis turned "
            "round); set it to the right one"
        )
    bits = 8 * int(image.get_data_dtype().itemsize)
    if int(raw["bitpix"]) != bits:
        problem = f"bitpix is {int(raw['bitpix'])}, but voxels of {image.get_data_dtype()} have {bits} bits"
        flag(path, problem, "check that the header gives the true type")


def read_voxels(path: Path, image: Any) -> NDArray[Any]:
    """All voxels of an open file, scaled as its header says; the file is read to its end.

    Raises:
        UserError: truncated or damaged.
    """
    try:
        with np.errstate(invalid="ignore", over="ignore"):
            data: NDArray[Any] = np.asanyarray(image.dataobj)
        surplus = _unpacked_bytes(path) - int(image.dataobj.offset) - _promised_bytes(image)
    except DAMAGED as error:
        raise UserError(
            f"{path}: truncated or corrupt voxel data ({first_line(error)}); fetch or export it again"
        ) from None
    if surplus > 0:
        shape = " x ".join(str(int(n)) for n in image.shape)
        flag(
            path,
            f"{surplus} bytes follow the voxels of the header's shape, {shape} of {image.dataobj.dtype}",
            "check that the header gives the true shape and type",
        )
    return data


def _unpacked_bytes(path: Path) -> int:
    """Size without compression, read to the end: only there are length and checksum, which nibabel does not reach."""
    if not _is_compressed(path):
        return path.stat().st_size
    size = 0
    with gzip.open(path) as stream:
        while block := stream.read(1 << 20):
            size += len(block)
    return size
