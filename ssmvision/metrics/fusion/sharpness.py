"""Measures of the fused image alone: contrast and sharpness in gray levels of 0..255."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvision.metrics.fusion.images import gray_images, per_image, require_side

__all__ = ["average_gradient", "spatial_frequency", "standard_deviation"]


def standard_deviation(fused: Tensor, *, data_range: float | None = None) -> Tensor:
    """SD: population standard deviation in gray levels of 0..255; 0 for a constant image.

    Args:
        fused: (H, W) or (B, 1, H, W).
        data_range: value that stands for white; None takes the range of uint8 or uint16.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`.
    """
    (image,) = gray_images(data_range, fused=fused)
    return per_image(image.std(dim=(1, 2, 3), correction=0), fused)


def spatial_frequency(fused: Tensor, *, data_range: float | None = None) -> Tensor:
    """SF: square root of the mean squared horizontal plus the mean squared vertical first difference.

    Each mean runs over its own number of differences, as in CDDFuse's evaluator (Eskicioglu & Fisher 1995 divide by
    the number of pixels). Gray levels of 0..255; 0 for a constant image.

    Args:
        fused: (H, W) or (B, 1, H, W), at least 2x2 pixels.
        data_range: value that stands for white; None takes the range of uint8 or uint16.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or the image is too small.
    """
    (image,) = gray_images(data_range, fused=fused)
    require_side(image, 2, "SF")
    across, down = (image.diff(dim=dim).square().mean(dim=(1, 2, 3)) for dim in (-1, -2))
    return per_image((across + down).sqrt(), fused)


def average_gradient(fused: Tensor, *, data_range: float | None = None) -> Tensor:
    """AG: mean of sqrt((gx^2 + gy^2) / 2) over all pixels, with central differences, one-sided at the border.

    Agrees with CDDFuse's evaluator; MATLAB tool boxes divide the same sum by (H - 1)(W - 1). Gray levels of 0..255 per
    pixel; 0 for a constant image.

    Args:
        fused: (H, W) or (B, 1, H, W), at least 2x2 pixels.
        data_range: value that stands for white; None takes the range of uint8 or uint16.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`; or the image is too small.
    """
    (image,) = gray_images(data_range, fused=fused)
    require_side(image, 2, "AG")
    down, across = torch.gradient(image, dim=(-2, -1))
    return per_image(((across.square() + down.square()) / 2).sqrt().mean(dim=(1, 2, 3)), fused)
