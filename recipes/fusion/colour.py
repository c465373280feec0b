"""Colour through luminance and chroma (ITU-R BT.601, full range): Y is fused, the colour stays beside it.

Arrays are floating with values in 0..1; the last axis holds red, green and blue.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["chroma", "luminance", "mixed_chroma", "recoloured", "rgb_to_ycrcb", "ycrcb_to_rgb"]

Floats = NDArray[np.floating[Any]]

WEIGHTS = (0.299, 0.587, 0.114)
# The published code of FusionMamba rounds these, so that its way back misses by up to 2e-4.
_CR, _CB = 0.713, 0.564
_RED_OF_CR, _GREEN_OF_CR, _GREEN_OF_CB, _BLUE_OF_CB = 1.403, 0.714, 0.344, 1.773


def luminance(rgb: Floats) -> Floats:
    """Y of colours (..., 3): (...) in their dtype."""
    red, green, blue = (np.asarray(rgb[..., i]) for i in range(3))
    y: Floats = WEIGHTS[0] * red + WEIGHTS[1] * green + WEIGHTS[2] * blue
    return y.astype(rgb.dtype, copy=False)


def chroma(rgb: Floats) -> Floats:
    """Cb and Cr of colours (..., 3) without their offset of a half: (..., 2), each from -0.5 to 0.5."""
    y = luminance(rgb)
    return np.stack(((rgb[..., 2] - y) / (2 - 2 * WEIGHTS[2]), (rgb[..., 0] - y) / (2 - 2 * WEIGHTS[0])), -1)


def mixed_chroma(a: Floats, b: Floats) -> Floats:
    """Chroma of two coloured images, each weighted by its strength (DeepFuse: Prabhakar et al. 2017, equation 5).

    Args:
        a, b: (..., 2), as `chroma` returns them.

    Returns:
        (..., 2); 0 (gray) where both are gray.
    """
    weight_a, weight_b = np.abs(a), np.abs(b)
    total = weight_a + weight_b
    mixed: Floats = np.divide(a * weight_a + b * weight_b, total, out=np.zeros_like(total), where=total > 0)
    return mixed


def recoloured(y: Floats, chroma: Floats) -> Floats:
    """Colours of a given luminance and chroma, exactly so wherever red, green and blue have room in 0..1.

    Elsewhere the chroma is scaled down until they have, which keeps luminance and hue; cutting the three off would
    change both.

    Args:
        y: (...), 0..1.
        chroma: (..., 2), as the function `chroma` returns it.

    Returns:
        (..., 3) in 0..1.
    """
    red, blue = chroma[..., 1] * (2 - 2 * WEIGHTS[0]), chroma[..., 0] * (2 - 2 * WEIGHTS[2])
    green = -(WEIGHTS[0] * red + WEIGHTS[2] * blue) / WEIGHTS[1]
    offsets = np.stack((red, green, blue), -1)
    room = np.where(offsets > 0, 1 - y[..., None], y[..., None])
    share = np.divide(room, np.abs(offsets), out=np.ones_like(offsets), where=np.abs(offsets) > room)
    rgb: Floats = y[..., None] + offsets * share.min(-1, keepdims=True)
    return np.clip(rgb, 0, 1)


def rgb_to_ycrcb(rgb: Floats) -> Floats:
    """Y, Cr and Cb with the rounded constants of FusionMamba's published code (train.py).

    Args:
        rgb: (..., 3), 0..1.

    Returns:
        (..., 3), Cr and Cb with 0.5 for gray.
    """
    y = luminance(rgb)
    return np.stack((y, (rgb[..., 0] - y) * _CR + 0.5, (rgb[..., 2] - y) * _CB + 0.5), -1).astype(rgb.dtype, copy=False)


def ycrcb_to_rgb(ycrcb: Floats) -> Floats:
    """The published way back from `rgb_to_ycrcb`, (..., 3); not cut to 0..1, and up to 2e-4 off."""
    y, cr, cb = ycrcb[..., 0], ycrcb[..., 1] - 0.5, ycrcb[..., 2] - 0.5
    green = y - _GREEN_OF_CR * cr - _GREEN_OF_CB * cb
    rgb = np.stack((y + _RED_OF_CR * cr, green, y + _BLUE_OF_CB * cb), -1)
    return rgb.astype(ycrcb.dtype, copy=False)
