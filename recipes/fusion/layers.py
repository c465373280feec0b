"""Takes the luminance out of an image, and makes the stored values of the fused image of a luminance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.colour import chroma, luminance, mixed_chroma, recoloured
from ssmvision.recipes.fusion.sources import Source
from ssmvision.recipes.fusion.windows import Window

__all__ = ["Layers", "Stored", "layers_of", "pick_chroma", "pick_like", "stored_values"]

Floats = NDArray[np.floating[Any]]
Colour = Literal["auto", "a", "b", "both", "none"]
Like = Literal["auto", "a", "b"]
_USED: dict[Colour, tuple[bool, bool]] = {
    "auto": (True, True),
    "both": (True, True),
    "a": (True, False),
    "b": (False, True),
    "none": (False, False),
}
_RGB24_WINDOW = Window(0, 255)
_UINT8: np.dtype[Any] = np.dtype(np.uint8)


@dataclass(frozen=True)
class Layers:
    """An image in 0..1: luminance in the image's shape, and chroma with a last axis of 2 where it has colour."""

    y: NDArray[np.float32]
    chroma: Floats | None = None


@dataclass(frozen=True)
class Stored:
    """Values for a file, and what they mean.

    Attributes:
        values: in the fused image's shape, with a last axis of 3 where it has colour.
        window: their black and white.
        dtype: of the numbers in the file.
        scale: slope and intercept that make the values of these numbers.
    """

    values: NDArray[Any]
    window: Window
    dtype: np.dtype[Any]
    scale: tuple[float, float]


def layers_of(source: Source, colormap: str | None = None) -> Layers:
    """Luminance and chroma of an image, within its window.

    Args:
        source: the image.
        colormap: name of the matplotlib colour map that a gray one is shown in.

    Raises:
        UserError: the map is unknown, or the image has colours already.
    """
    unit = source.window.to_unit(source.values)
    if colormap is not None:
        if source.is_coloured:
            raise UserError(f"{source.path}: has colours, so that colour map {colormap!r} has no use; leave it out")
        unit = _mapped(unit, colormap)
    elif not source.is_coloured:
        return Layers(unit)
    return Layers(np.ascontiguousarray(luminance(unit), dtype=np.float32), chroma(unit))


def _mapped(unit: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    import matplotlib

    if name not in matplotlib.colormaps:
        raise UserError(f"colour map {name!r} is unknown to matplotlib; for example: hot, inferno, viridis, jet")
    return np.asarray(matplotlib.colormaps[name](unit)[..., :3], dtype=np.float32)


def pick_chroma(layers: tuple[Layers, Layers], colour: Colour) -> Floats | None:
    """Chroma of the fused image; None where it is gray.

    Raises:
        UserError: an image that colour is asked from is gray.
    """
    given = [image.chroma for image, used in zip(layers, _USED[colour], strict=True) if used]
    if colour != "auto" and any(value is None for value in given):
        raise UserError(
            f"--colour is {colour}, but an image that it names is gray; leave it out, or show that image in colour "
            "by --colormap_a or --colormap_b"
        )
    found = [value for value in given if value is not None]
    if len(found) == 2:
        return mixed_chroma(*found)
    return found[0] if found else None


def pick_like(a: Source, b: Source, layers: tuple[Layers, Layers], colour: Colour, like: Like) -> Source:
    """The image whose type of numbers and range the fused one gets: the named, the only one that gives colour, or a."""
    if like == "auto":
        gives = [used and image.chroma is not None for image, used in zip(layers, _USED[colour], strict=True)]
        return b if gives == [False, True] else a
    return a if like == "a" else b


def stored_values(y: NDArray[np.float32], chroma: Floats | None, like: Source, truncate: bool = False) -> Stored:
    """The fused image in the numbers of one of its sources; volumes with colour in 8 bits.

    Args:
        y: luminance in 0..1.
        chroma: with a last axis of 2; None for gray.
        like: see `pick_like`.
        truncate: see `Window.from_unit`.
    """
    unit = y if chroma is None else recoloured(y, chroma).astype(np.float32)
    if like.is_volume and (chroma is not None or like.is_coloured):
        return Stored(_RGB24_WINDOW.from_unit(unit, _UINT8, truncate), _RGB24_WINDOW, _UINT8, (1.0, 0.0))
    scaled = like.scale != (1.0, 0.0)
    values = like.window.from_unit(unit, np.dtype(np.float64) if scaled else like.dtype, truncate and not scaled)
    return Stored(values, like.window, like.dtype, like.scale)
