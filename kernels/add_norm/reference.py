"""The definition in plain PyTorch, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward", "keeps_hidden"]


def keeps_hidden(hidden: Tensor, residual: Tensor | None, residual_dtype: torch.dtype) -> bool:
    """Whether the new residual would be a copy of hidden; then it is not written."""
    return residual is None and hidden.dtype == residual_dtype


def forward(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    residual_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add and normalise.

    Args:
        hidden: (..., C).
        residual: (..., C), or None.
        weight: (C,).
        eps: added to the mean square.
        out_dtype: of the normed tensor.
        residual_dtype: of the new residual, before it is normalised.

    Returns:
        The normed sum (..., C); the new residual (..., C), empty where it would be a copy of hidden; the inverse root
        mean square of every row (rows,), in float32 or the residual's wider dtype.
    """
    total = hidden if residual is None else residual + hidden
    total = total.to(residual_dtype)
    normed = F.rms_norm(total, weight.shape, weight.to(total.dtype), eps).to(out_dtype)
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    rstd = (wide.square().mean(-1) + eps).rsqrt().reshape(-1)
    kept = keeps_hidden(hidden, residual, residual_dtype)
    return normed, hidden.new_empty(0, dtype=residual_dtype) if kept else total, rstd


def backward(
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    hidden_dtype: torch.dtype,
    has_residual: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of `forward`.

    Args:
        total: (..., C), the new residual (hidden where the forward left it out).
        weight: (C,).
        rstd: (rows,), as `forward` returned it.
        d_normed: (..., C), gradient of the normed sum.
        d_total: (..., C), gradient of the new residual, None for zero.
        hidden_dtype: of hidden.
        has_residual: whether the forward got a residual.

    Returns:
        d_hidden (..., C) in hidden's dtype; d_residual (..., C) in the new residual's dtype, None where there is no
        residual or it would be a copy of d_hidden; d_weight (C,) in weight's dtype.
    """
    wide = torch.promote_types(total.dtype, torch.float32)
    scale = rstd.view(*total.shape[:-1], 1)
    unit = total.to(wide) * scale
    dy = d_normed.to(wide)
    d_unit = dy * weight.to(wide)
    grad = scale * (d_unit - unit * (d_unit * unit).mean(-1, keepdim=True))
    if d_total is not None:
        grad = grad + d_total.to(wide)
    d_weight = (dy * unit).reshape(-1, weight.shape[0]).sum(0).to(weight.dtype)
    apart = has_residual and hidden_dtype != total.dtype
    return grad.to(hidden_dtype), grad.to(total.dtype) if apart else None, d_weight
