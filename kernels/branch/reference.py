"""The definitions in plain PyTorch, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["norm_backward", "norm_forward", "sum_backward", "sum_forward"]


def _wide(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for t in tensors:
        dtype = torch.promote_types(dtype, t.dtype)
    return dtype


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise the channels of every position.

    Args:
        x: (B, C, P).
        weight, bias: (C,).
        eps: added to the variance.
        out_dtype: of the result.
        last: (B, P, C) rather than (B, C, P).

    Returns:
        The normed map; mean and inverse standard deviation (B, P), at least float32.
    """
    wide = x.to(_wide(x)).transpose(1, 2)
    y = F.layer_norm(wide, weight.shape, weight.to(wide.dtype), bias.to(wide.dtype), eps).to(out_dtype)
    variance, mean = torch.var_mean(wide, -1, correction=0)
    return (y if last else y.transpose(1, 2)).contiguous(), mean, (variance + eps).rsqrt()


def norm_backward(
    x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias, in their dtypes (bias as weight)."""
    dtype = _wide(x)
    unit = (x.to(dtype) - mean.unsqueeze(1)) * rstd.unsqueeze(1)
    dy = (dy.transpose(1, 2) if last else dy).to(dtype)
    d_unit = dy * weight.to(dtype).view(-1, 1)
    centered = d_unit - d_unit.mean(1, keepdim=True) - unit * (d_unit * unit).mean(1, keepdim=True)
    dx = (centered * rstd.unsqueeze(1)).to(x.dtype)
    return dx, (dy * unit).sum((0, 2)).to(weight.dtype), dy.sum((0, 2)).to(weight.dtype)


def sum_forward(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    out_dtype: torch.dtype,
    copy_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Add a scaled branch to the map.

    Args:
        x: (B, C, P).
        branch: (B, P, C).
        gamma: (C,) factors, or None.
        keep: (B,) factors, or None.
        out_dtype: of the sum.
        copy_dtype: of a second copy of the sum, None for none.

    Returns:
        The sum (B, C, P) and its copy, empty for none.
    """
    wide = _wide(x, branch)
    total = x.to(wide) + _scaled(branch.to(wide).transpose(1, 2), gamma, keep)
    copy = x.new_empty(0) if copy_dtype is None else total.to(copy_dtype).contiguous()
    return total.to(out_dtype).contiguous(), copy


def _scaled(t: Tensor, gamma: Tensor | None, keep: Tensor | None) -> Tensor:
    """(B, C, P) times its factors."""
    if gamma is not None:
        t = t * gamma.to(t.dtype).view(-1, 1)
    return t if keep is None else t * keep.to(t.dtype).view(-1, 1, 1)


def sum_backward(
    branch: Tensor, gamma: Tensor | None, keep: Tensor | None, d_total: Tensor, d_copy: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `sum_forward`.

    Args:
        branch, gamma, keep: as there.
        d_total: gradient of the sum.
        d_copy: gradient of its copy, or None.

    Returns:
        d_x in d_total's dtype (d_total itself where there is no copy), d_branch in branch's, d_gamma in gamma's.
    """
    wide = _wide(branch, d_total)
    d_x = d_total if d_copy is None else (d_total.to(wide) + d_copy.to(wide)).to(d_total.dtype)
    dropped = _scaled(d_x.to(wide), None, keep)
    d_gamma = None
    if gamma is not None:
        d_gamma = (dropped * branch.transpose(1, 2)).sum((0, 2)).to(gamma.dtype)
    d_branch = _scaled(dropped, gamma, None).transpose(1, 2).to(branch.dtype).contiguous()
    return d_x, d_branch, d_gamma
