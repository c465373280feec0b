"""The definition by PyTorch's batch norm, which sees every channel of every sample as one of a single sample."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["backward", "forward"]


def _flat(x: Tensor) -> Tensor:
    return x.contiguous().view(1, -1, x.shape[2])


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise every channel of every sample over its voxels.

    Args:
        x: (B, C, P).
        weight, bias: (C,).
        eps: added to the variance, which is the mean square deviation.

    Returns:
        y (B, C, P) in x's dtype; mean and inverse standard deviation (B, C), at least float32.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    gain, shift = (t.to(wide).repeat(len(x)) for t in (weight, bias))
    y, mean, rstd = torch.native_batch_norm(_flat(x).to(wide), gain, shift, None, None, True, 0.0, eps)
    return y.view(x.shape).to(x.dtype), mean.view(x.shape[:2]), rstd.view(x.shape[:2])


def backward(x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, in their dtypes (bias as weight)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    channels = (rstd.unsqueeze(2), mean.unsqueeze(2), weight.to(wide).view(-1, 1))
    scale, center, gain = channels
    unit, d = (x.to(wide) - center) * scale, dy.to(wide)
    dweight, dbias = (d * unit).sum(2), d.sum(2)
    voxels = x.shape[2]
    dx = gain * scale * (d - (dbias / voxels).unsqueeze(2) - unit * (dweight / voxels).unsqueeze(2))
    return dx.to(x.dtype), dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype)
