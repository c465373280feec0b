"""Reads and writes pictures (PNG, TIFF, JPEG, BMP) with all their bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.sources import Source, check_finite
from ssmvision.recipes.fusion.windows import Window, image_window
from ssmvision.recipes.segmentation.writing import write_atomic

__all__ = ["ENDINGS", "check_storable", "on_size", "read_picture", "write_picture"]

ENDINGS = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
TIFF = (".tif", ".tiff")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Byte of the header, and its value for gray with alpha, which OpenCV decodes as four channels.
PNG_COLOUR_TYPE, PNG_GRAY_ALPHA = 25, 4


def read_picture(path: Path, window: Window | None = None) -> Source:
    """A picture as stored: palettes looked up, alpha kept apart; three channels count as colour, even if equal.

    Args:
        path: the file.
        window: stored values of black and white; None goes by the type, see `image_window`.

    Raises:
        UserError: missing, damaged, of several pages, without pixels, or with values that are not finite.
    """
    pixels = _decoded(path)
    check_finite(path, pixels)
    alpha = None
    if pixels.shape[2:] in ((2,), (4,)):
        pixels, alpha = pixels[..., :-1], np.ascontiguousarray(pixels[..., -1])
        # What lies under full transparency was never meant to be seen.
        pixels = np.where(alpha[..., None] == 0, np.zeros_like(pixels), pixels)
        pixels = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    pixels = np.ascontiguousarray(pixels)
    return Source(path, pixels, window or image_window(pixels), pixels.dtype, alpha=alpha)


def _decoded(path: Path) -> NDArray[Any]:
    """(H, W), or with a last axis of 2 (gray, alpha), 3 (red, green, blue) or 4 (these and alpha)."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its permissions and the disk") from None
    pages = _pages(path, content)
    if len(pages) > 1:
        raise UserError(f"{path}: holds {len(pages)} pages; save each one as a file, or the stack as a NIfTI volume")
    pixels = pages[0]
    if pixels.dtype == np.uint8 and content.startswith(TIFF_SIGNATURES):
        pixels_with_alpha = _tiff_alpha(content)
        if pixels_with_alpha is not None:
            return pixels_with_alpha
    if pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise UserError(f"{path}: has {pixels.shape[2]} channels; save it as gray, RGB or RGBA")
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    if content.startswith(PNG_SIGNATURE) and content[PNG_COLOUR_TYPE] == PNG_GRAY_ALPHA:
        return pixels[..., [0, 3]]
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def _tiff_alpha(content: bytes) -> NDArray[np.uint8] | None:
    """Pixels of an 8-bit TIFF with alpha, which OpenCV multiplies into the colours or drops; None of any other."""
    try:
        with Image.open(BytesIO(content)) as image:
            mode = {"LA": "LA", "RGBA": "RGBA", "RGBa": "RGBA"}.get(image.mode)
            return None if mode is None else np.asarray(image.convert(mode))
    except UnidentifiedImageError:  # kinds that only OpenCV reads have no such alpha
        return None


def _pages(path: Path, content: bytes) -> list[NDArray[Any]]:
    """Decoded from memory: OpenCV's own way to a file loses names that the platform's code page lacks."""
    with _quiet_codecs():
        try:
            buffer = np.frombuffer(content, dtype=np.uint8)
            found, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED) if content else (False, [])
        except cv2.error as error:
            raise UserError(f"{path}: cannot be decoded ({error.err}); save it again as PNG or TIFF") from None
    if not found or not len(pages):
        raise UserError(
            f"{path}: not a readable picture ({len(content)} bytes); it is damaged or of another format, save it again "
            "as PNG or TIFF"
        )
    return [np.asarray(page) for page in pages]


@contextmanager
def _quiet_codecs() -> Iterator[None]:
    """Without OpenCV's own lines on standard error: the error that is raised says it."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def on_size(a: Source, b: Source, resample: bool) -> Source:
    """The second picture, in the size of the first.

    Args:
        a, b: the pictures.
        resample: stretch `b` where the sizes differ (area means to shrink, linear to enlarge); both are then taken to
            show the same field of view.

    Raises:
        UserError: the sizes differ and `resample` is not set.
    """
    if a.shape == b.shape:
        return b
    (height, width), (height_b, width_b) = a.shape, b.shape
    if not resample:
        raise UserError(
            f"{b.path}: is {width_b}x{height_b} pixels, but {a.path} is {width}x{height}; register them, or stretch "
            f"{b.path.name} to the size of {a.path.name} by --resample"
        )
    how = cv2.INTER_AREA if height * width < height_b * width_b else cv2.INTER_LINEAR

    def stretched(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(cv2.resize(pixels.astype(np.float64), (width, height), interpolation=how))

    alpha = None if b.alpha is None else np.rint(stretched(b.alpha)).astype(b.alpha.dtype)
    values = stretched(b.values)
    # One pixel's axis may be dropped; linear interpolation stays within the values but for rounding.
    values = np.clip(values.reshape(*a.shape, *b.values.shape[2:]), b.values.min(), b.values.max())
    return replace(b, values=values, alpha=None if alpha is None else alpha.reshape(a.shape))


def check_storable(path: Path, dtype: np.dtype[Any]) -> None:
    """Refuses an output name whose format cannot hold the numbers, before the work whose result it would take.

    Raises:
        UserError: with the format to take instead.
    """
    ending = path.suffix.lower()
    if ending not in (".png", *TIFF):
        raise UserError(f"{path}: the ending {ending!r} is not written, since it loses values; end it in .png or .tif")
    if ending == ".png" and dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"{path}: PNG cannot hold {dtype} values; end the name in .tif, or take the other image's type by --like"
        )


def write_picture(path: Path, pixels: NDArray[Any], alpha: NDArray[Any] | None = None) -> None:
    """Writes a PNG or TIFF without loss, whole or not at all, and compares it with what was to be written.

    Gray with alpha is stored as such in 8-bit PNG, else as red, green, blue and alpha.

    Args:
        path: ends in .png, .tif or .tiff; an older file is replaced.
        pixels: (H, W) gray or (H, W, 3) red, green, blue.
        alpha: (H, W), of the same dtype.

    Raises:
        UserError: the format cannot hold the dtype, or the disk refused the file.
    """
    check_storable(path, pixels.dtype)
    if alpha is not None:
        gray_alpha = path.suffix.lower() == ".png" and pixels.dtype == np.uint8
        if pixels.ndim == 2 and not gray_alpha:
            pixels = np.repeat(pixels[..., None], 3, 2)
        pixels = np.dstack((pixels, alpha))
    content = _encoded(path, pixels)

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)
        if not np.array_equal(_decoded(temporary), pixels):
            raise UserError(f"{path}: the pixels read back differ from those written; check the disk and try again")

    write_atomic(path, write, path.suffix)


def _encoded(path: Path, pixels: NDArray[Any]) -> bytes:
    tiff = path.suffix.lower() in TIFF
    alpha = pixels.shape[2:] in ((2,), (4,))
    if alpha and pixels.dtype == np.uint8:
        # OpenCV knows no gray with alpha, and does not mark the alpha of a TIFF as such.
        buffer = BytesIO()
        options = {"compression": "tiff_adobe_deflate"} if tiff else {}
        Image.fromarray(pixels).save(buffer, "TIFF" if tiff else "PNG", **options)
        return buffer.getvalue()
    flags = [cv2.IMWRITE_TIFF_COMPRESSION, cv2.IMWRITE_TIFF_COMPRESSION_ADOBE_DEFLATE] if tiff else []
    bgr = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., [2, 1, 0, 3][: pixels.shape[2]]])
    done, content = cv2.imencode(".tiff" if tiff else ".png", bgr, flags)
    if not done:
        raise UserError(f"{path}: {pixels.dtype} pixels of shape {pixels.shape} could not be encoded; report this")
    return content.tobytes()
