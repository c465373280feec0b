"""From what users have to what the definitions are written for: float64 gray images on the 8-bit scale."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

__all__ = ["WHITE", "OverSources", "gray_images", "over_sources", "per_image", "require_side"]

WHITE = 255.0
OverSources = Literal["sum", "mean"]
_INTEGER_RANGES = {torch.uint8: 255.0, torch.uint16: 65535.0}
# A rounded division by the range may end a hair outside of it.
_SLACK = 1e-6


def gray_images(data_range: float | None, **images: Tensor) -> list[Tensor]:
    """Each image as (B, 1, H, W) float64 in 0..255 (nothing is rounded), in the order given.

    Args:
        data_range: the value that stands for white; None takes 255 for uint8 and 65535 for uint16.
        images: gray images of one shape, (H, W) or (B, 1, H, W), by the name that errors use.

    Raises:
        TypeError: a value is no tensor, or of a dtype that holds no gray values.
        ValueError: shapes differ or are not gray, data_range is missing or not positive, or values are not finite or
            outside [0, data_range].
    """
    first_name, first = next(iter(images.items()))
    gray = []
    for name, image in images.items():
        if not isinstance(image, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(image).__name__}; convert it by torch.as_tensor")
        if image.shape != first.shape:
            raise ValueError(
                f"{name} is {tuple(image.shape)} but {first_name} is {tuple(first.shape)}; "
                "fused image and sources must be on one grid"
            )
        if image.device != first.device:
            raise ValueError(f"{name} is on {image.device} but {first_name} on {first.device}; move them together")
        gray.append(_scaled(name, _batched(name, image.detach()), data_range))
    return gray


def _batched(name: str, image: Tensor) -> Tensor:
    if image.dim() == 2:
        image = image[None, None]
    if image.dim() != 4 or image.shape[1] != 1:
        raise ValueError(
            f"{name} is {tuple(image.shape)}; expected gray (H, W) or (B, 1, H, W); of colour images take the luminance"
        )
    if 0 in image.shape:
        raise ValueError(f"{name} is {tuple(image.shape)}: there is no pixel in it")
    return image


def _scaled(name: str, image: Tensor, data_range: float | None) -> Tensor:
    if image.dtype == torch.bool or image.is_complex():
        raise TypeError(f"{name} is {image.dtype}; expected gray values in an integer or floating dtype")
    white = _INTEGER_RANGES.get(image.dtype) if data_range is None else data_range
    if white is None:
        raise ValueError(
            f"{name} is {image.dtype}: say which value stands for white by data_range= (often 1.0 or 255.0)"
        )
    if not 0 < white < float("inf"):
        raise ValueError(f"data_range is {white}; expected a positive number, the value that stands for white")
    values = image.double()
    low, high = (float(value) for value in torch.aminmax(values))
    if not low > float("-inf") or not high < float("inf"):
        count = int((~values.isfinite()).sum())
        raise ValueError(f"{name} has {count} values that are NaN or infinite; mask or replace them first")
    if low < -_SLACK * white or high > white * (1 + _SLACK):
        raise ValueError(
            f"{name} has values from {low:g} to {high:g}, outside [0, {white:g}]; clamp it or give another data_range"
        )
    return values if white == WHITE else values * (WHITE / white)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One value per image, (B,); of a single image (H, W) a 0-dimensional tensor."""
    return values[0] if like.dim() == 2 else values


def over_sources(of_a: Tensor, of_b: Tensor, reduction: OverSources) -> Tensor:
    """Sum or mean of what was measured against each source.

    Raises:
        ValueError: another reduction.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}; expected 'sum' or 'mean' over the two sources")
    return of_a + of_b if reduction == "sum" else (of_a + of_b) / 2


def require_side(image: Tensor, least: int, metric: str) -> None:
    """Refuse images (..., H, W) that are too small for a metric's windows.

    Raises:
        ValueError: a side is shorter than `least`.
    """
    height, width = image.shape[-2:]
    if min(height, width) < least:
        raise ValueError(f"{metric} needs images of at least {least}x{least} pixels, got {height}x{width}")
