"""Toeplitz matrices of 1D kernels, and the sums along their diagonals that the kernels' gradients are."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["diagonal_sums", "toeplitz"]


def toeplitz(kernel: Tensor, center: int, length: int) -> Tensor:
    """Matrices with T[i, j] = kernel[center + i - j], zero where there is no tap: (..., T) -> (..., length, length)."""
    taps = kernel.shape[-1]
    before, after = length - 1 - center, length - (taps - center)
    # Lags 1 - length ... length - 1, then windows: row i of the matrix is the window from lag i + 1 - length, reversed.
    band = F.pad(kernel, (before, after)) if max(before, after) > 0 else kernel[..., -before : taps + after]
    return band.unfold(-1, length, 1).flip(-1)


def diagonal_sums(matrix: Tensor, center: int, taps: int) -> Tensor:
    """The transpose of `toeplitz`: sums along diagonals, (..., L, L) -> (..., taps)."""
    length = matrix.shape[-1]
    # Rows padded to 2L and read with a stride of 2L - 1: each row shifts by one and every diagonal becomes a column.
    sheared = F.pad(matrix.flip(-1), (0, length)).flatten(-2)[..., : length * (2 * length - 1)]
    lags = sheared.unflatten(-1, (length, 2 * length - 1)).sum(-2)
    before, after = length - 1 - center, length - (taps - center)
    return F.pad(lags, (-before, -after))
