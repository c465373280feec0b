"""Small pictures and volumes, written to disk, for the tests of fusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import nibabel
import numpy as np
from numpy.typing import NDArray

OBLIQUE = np.array([[0, 0.5, 0.1, 10], [-1, 0, 0.2, 20], [0.1, 0, 3, -30], [0, 0, 0, 1]])


def texture(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float64]:
    """Smooth noise from exactly 0 to exactly 1."""
    noise = np.random.default_rng(seed).random(shape)
    smooth = cv2.GaussianBlur(noise.reshape(shape[0], -1), (0, 0), 2).reshape(shape)
    return np.asarray((smooth - smooth.min()) / np.ptp(smooth))


def picture(shape: tuple[int, ...] = (24, 36), dtype: Any = np.uint8, seed: int = 0) -> NDArray[Any]:
    """Values over the dtype's whole range; floats from 0 to 1."""
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1
    return (texture(shape, seed) * top).astype(dtype)


def save_picture(path: Path, pixels: NDArray[Any]) -> Path:
    """Gray, or red, green, blue (and alpha) in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = [2, 1, 0, 3][: pixels.shape[-1]] if pixels.ndim == 3 else slice(None)
    assert cv2.imwrite(str(path), pixels[..., order] if pixels.ndim == 3 else pixels)
    return path


def load_picture(path: Path) -> NDArray[Any]:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert pixels is not None, path
    return pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def save_volume(path: Path, values: NDArray[Any], affine: NDArray[Any] = OBLIQUE, **fields: Any) -> Path:
    """A NIfTI file with qform and sform, millimetres, and further header fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, 1)
    image.set_qform(affine, 1, strip_shears=True)
    for name, value in fields.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def head(shape: tuple[int, int, int] = (18, 20, 9), seed: int = 0, low: float = -300, high: float = 900) -> Any:
    """Signed 16-bit volume with exactly these extremes."""
    return np.rint(low + texture(shape, seed) * (high - low)).astype(np.int16)
