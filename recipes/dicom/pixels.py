"""Decodes the pixels of slices into one array, in the unit that each slice's rescaling gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import guarded, read_header
from ssmvision.recipes.dicom.planes import Plane

__all__ = ["read_pixels"]

# Up to so many bits, rescaled by whole numbers, values are kept as integers, unless 32 bits are too few.
_INTEGER_BITS, _LARGEST = 16, np.iinfo(np.int32).max


def read_pixels(planes: Sequence[Plane]) -> NDArray[Any]:
    """The values of ordered slices.

    Args:
        planes: of one size and kind.

    Returns:
        (columns, rows, slices), or with a last axis of 3 with colour (uint8); int16 where all values are whole and
        fit, else int32, else float32. A view of (slices, rows, columns) in memory.

    Raises:
        UserError: a file is cut short, or compressed in a way that no installed package decodes.
    """
    dtype = np.uint8 if planes[0].photometric == "RGB" else np.int16 if all(map(_whole, planes)) else np.float32
    stack: NDArray[Any] | None = None
    for index, (plane, pixels) in enumerate(_decoded(planes)):
        values = pixels if dtype is np.uint8 else pixels * plane.slope + plane.intercept
        # Only now: a header may promise any size, a decoded slice has its own.
        stack = np.empty((len(planes), *values.shape), dtype) if stack is None else stack
        if stack.dtype == np.int16 and max(-values.min() - 1, values.max()) > np.iinfo(np.int16).max:
            stack = stack.astype(np.int32)
        stack[index] = values
    assert stack is not None  # there is at least one slice
    return np.swapaxes(stack, 0, 2)


def _whole(plane: Plane) -> bool:
    """Whether all that the slice's bits can say is, rescaled, an integer of 32 bits."""
    largest = abs(plane.slope) * 2**plane.bits + abs(plane.intercept)
    return (
        plane.slope.is_integer()
        and plane.intercept.is_integer()
        and plane.bits <= _INTEGER_BITS
        and largest <= _LARGEST
    )


def _decoded(planes: Sequence[Plane]) -> Iterator[tuple[Plane, NDArray[Any]]]:
    for file, of_file in groupby(planes, key=lambda plane: plane.file):
        frames = _file_pixels(file)
        for plane in of_file:
            pixels = frames if plane.frame is None or frames.ndim == 2 else frames[plane.frame]
            expected = (plane.size[1], plane.size[0])
            if pixels.shape[:2] != expected or pixels.ndim - 2 != (plane.photometric == "RGB"):
                raise UserError(
                    f"{file}: its pixels have the shape {pixels.shape}, expected {expected}; export it again"
                )
            if pixels.ndim == 3 and pixels.dtype != np.uint8:
                raise UserError(f"{file}: has colours of {pixels.dtype}; convert them to 8 bits")
            yield plane, pixels


def _file_pixels(file: Path) -> NDArray[Any]:
    data = read_header(file, pixels=True)
    if not any(name in data for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UserError(f"{file}: its pixels cannot be decoded (it ends before them); fetch or export it again")
    with guarded(file, "its pixels cannot be decoded"):
        _check_decoder(file, data)
        return np.asarray(data.pixel_array)


def _check_decoder(file: Path, data: Any) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None or not syntax.is_compressed or not syntax.is_encapsulated:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(
            f"{file}: compressed as {syntax.name}, which is not supported; decompress the series first"
        ) from None
    if not decoder.is_available:
        wanted = "; ".join(decoder.missing_dependencies)
        raise UserError(
            f"{file}: compressed as {syntax.name}, which no installed package decodes ({wanted}); "
            "pip install 'ssmvision[dicom]', or decompress the series first"
        )
