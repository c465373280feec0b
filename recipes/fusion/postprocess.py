"""From a network's output to gray values in 0..1, and the published way to 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["clamped", "official_uint8", "stretched"]

Floats = NDArray[np.floating[Any]]


def clamped(output: Floats) -> Floats:
    """The output cut to 0..1, in its dtype: brightness as the network means it."""
    return np.clip(output, 0, 1)


def stretched(output: Floats) -> Floats:
    """FusionMamba's published test.py: cut to 0..1, then stretched so that its smallest value is 0 and its largest 1.

    Brightness is lost by it: give it a whole volume, since slices stretched one by one flicker. A constant output,
    which the published code divides by zero, stays as it is.

    Returns:
        In the shape and dtype of `output`.
    """
    image = clamped(output)
    low, high = image.min(), image.max()
    return image if low == high else np.asarray((image - low) / (high - low), dtype=image.dtype)


def official_uint8(image: Floats) -> NDArray[np.uint8]:
    """0..1 to 0..255 by cutting the fraction off, as the published test.py does; rounding is half a level brighter."""
    return (255 * image).astype(np.uint8)
