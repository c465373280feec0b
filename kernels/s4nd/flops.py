"""How many multiply-accumulates S4ND's convolutions and kernels are, from shapes alone. No torch.

A convolution counts by its definition, one axis after the other, whichever way a backend takes: products of Toeplitz
matrices are that many, a Fourier transform needs fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

__all__ = ["convolution_macs", "dplr_macs", "modes_macs"]

Shape = Sequence[int]


def _pairs(length: int, taps: int, center: int) -> int:
    """Outputs and inputs of an axis that a kernel joins: tap t joins those that are t - center apart."""
    return sum(max(length - abs(tap - center), 0) for tap in range(taps))


def convolution_macs(u: Shape, kernels: Sequence[Shape], centers: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Of `long_conv_nd`, for u (B, H, *grid) and a kernel (R, C, H, T) for each axis; the skip does not count."""
    grid = u[2:]
    systems = prod(kernels[0][:3])
    axes = zip(grid, kernels, centers, strict=True)
    joined = sum(_pairs(length, kernel[3], center) * prod(grid) // length for length, kernel, center in axes)
    return u[0] * systems * joined


def modes_macs(
    log_re: Shape, log_im: Shape, weight_re: Shape, weight_im: Shape, length: int, *args: Any, **_: Any
) -> int:
    """Of the kernels of diagonal systems: weight (G, C, H, N), two (a real and an imaginary part) a mode and tap."""
    return 2 * prod(weight_re) * length


def dplr_macs(
    dt: Shape, A_re: Shape, A_im: Shape, B: Shape, C: Shape, P: Shape, nodes: int, length: int, **kwargs: Any
) -> int:
    """Of S4's kernels: C (G, C, H, N, 2), the resolvent at the roots of unity and the transform to taps.

    Source: Gu et al., arXiv 2111.00396, algorithm 1, for systems of rank 1.
    """
    groups, channels, features, modes, _parts = C
    half = nodes // 2 + 1
    resolvent = 2 * (channels + 1) * (2 * modes) * (2 * half)
    return groups * features * (resolvent + channels * 2 * half * length)
