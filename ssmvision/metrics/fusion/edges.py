"""Qabf: how much of the sources' edges the fused image keeps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.metrics.fusion.images import gray_images, per_image

__all__ = ["qabf"]

# Xydeas & Petrovic 2000: ceiling, slope and centre of the two sigmoids.
_STRENGTH = (0.9994, 15.0, 0.5)
_ORIENTATION = (0.9879, 22.0, 0.8)


def qabf(a: Tensor, b: Tensor, fused: Tensor, *, data_range: float | None = None) -> Tensor:
    """Qabf: edge strength and orientation kept, weighted by the sources' edge strength (Xydeas & Petrovic 2000).

    Sobel strength g and orientation atan(gy / gx), zeros beyond the border. Agrees with CDDFuse's evaluator, which sets
    the relative strength of two equal edges to the strength itself and not to 1; Petrovic's own tool box
    (`analysis_nabf`) has other constants and weights and gives other numbers. 0 where neither source has any edge.

    Args:
        a, b, fused: (H, W) or (B, 1, H, W), all of one shape.
        data_range: value that stands for white; None takes the range of uint8 or uint16.

    Raises:
        TypeError, ValueError: see `ssmvision.metrics.fusion.images.gray_images`.
    """
    edges_a, edges_b, edges_fused = (_edges(image) for image in gray_images(data_range, a=a, b=b, fused=fused))
    kept = _preserved(edges_a, edges_fused) * edges_a[0] + _preserved(edges_b, edges_fused) * edges_b[0]
    total = (edges_a[0] + edges_b[0]).sum(dim=(1, 2, 3))
    value = kept.sum(dim=(1, 2, 3)) / total.where(total > 0, 1.0)
    return per_image(value.where(total > 0, 0.0), fused)


def _edges(image: Tensor) -> tuple[Tensor, Tensor]:
    """Strength and orientation in (-pi/2, pi/2], each (B, 1, H, W)."""
    sobel = image.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack((sobel, -sobel.T)).unsqueeze(1)
    across, up = F.conv2d(image, kernels, padding=1).split(1, dim=1)
    vertical = across == 0
    angle = (up / across.where(~vertical, 1.0)).atan().where(~vertical, math.pi / 2)
    return (across.square() + up.square()).sqrt(), angle


def _preserved(source: tuple[Tensor, Tensor], fused: tuple[Tensor, Tensor]) -> Tensor:
    """Edge preservation of every pixel, in 0..1."""
    (g_source, angle_source), (g_fused, angle_fused) = source, fused
    larger = torch.maximum(g_source, g_fused)
    ratio = torch.minimum(g_source, g_fused) / larger.where(larger > 0, 1.0)
    strength = torch.where(g_source == g_fused, g_fused, ratio)
    orientation = 1 - (angle_source - angle_fused).abs() / (math.pi / 2)
    return _sigmoid(strength, _STRENGTH) * _sigmoid(orientation, _ORIENTATION)


def _sigmoid(x: Tensor, constants: tuple[float, float, float]) -> Tensor:
    ceiling, slope, centre = constants
    return ceiling * torch.sigmoid(slope * (x - centre))
