"""The damped exponential moving average of Mega as a convolution kernel.

Source: Ma et al., "Mega: Moving Average Equipped Gated Attention" (arXiv 2209.10655), section 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["ema_kernel", "ema_modes"]


def ema_modes(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Decay q and coefficient of each mode: the kernel is sum_n coefficient_n q_n^l.

    Args:
        delta: (..., H, 1 or N, 1) logits of the step p.
        alpha: (..., H, N, 1) logits of the damping: q = 1 - p sigmoid(alpha).
        beta: (..., H, N, 1) expansion.
        gamma: (..., H, N) projection.

    Returns:
        both (..., H, N).
    """
    p = torch.sigmoid(delta)
    q = (1 - p * torch.sigmoid(alpha)).squeeze(-1)
    return q, (p * beta).squeeze(-1) * gamma / math.sqrt(gamma.shape[-1])


def ema_kernel(delta: Tensor, alpha: Tensor, beta: Tensor, gamma: Tensor, length: int) -> Tensor:
    """K[l] = sum_n p beta q^l gamma / sqrt(N), (..., H, length); arguments of `ema_modes`."""
    q, coefficient = ema_modes(delta, alpha, beta, gamma)
    steps = torch.arange(length, device=q.device, dtype=q.dtype)
    powers = torch.exp(torch.log(q).unsqueeze(-1) * steps)
    return torch.matmul(coefficient.unsqueeze(-2), powers).squeeze(-2)
