"""The definition in plain PyTorch, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.add_norm.args import Grads, NormArgs, NormGrads, keeps_hidden

__all__ = ["backward", "forward"]


def forward(args: NormArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Add and normalise.

    Returns:
        The normed sum (..., C); the new residual (..., C), empty where it would be a copy of hidden; statistics of
        every row in float32 or the residual's wider dtype: the inverse root (rows,) of its mean square, or, centered,
        that of its variance and its mean (2, rows).
    """
    hidden, residual, weight = args.hidden, args.residual, args.weight
    total = (hidden if residual is None else residual + hidden).to(args.residual_dtype)
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    if args.centered:
        # Computed wide even where torch's own rule would round weight and bias first.
        bias = None if args.bias is None else args.bias.to(wide.dtype)
        normed = F.layer_norm(wide, weight.shape, weight.to(wide.dtype), bias, args.eps)
        mean = wide.mean(-1)
        rstd = ((wide - mean.unsqueeze(-1)).square().mean(-1) + args.eps).rsqrt()
        stats = torch.stack((rstd.reshape(-1), mean.reshape(-1)))
    else:
        normed = F.rms_norm(total, weight.shape, weight.to(total.dtype), args.eps)
        stats = (wide.square().mean(-1) + args.eps).rsqrt().reshape(-1)
    kept = keeps_hidden(hidden, residual, args.residual_dtype)
    return normed.to(args.out_dtype), hidden.new_empty(0, dtype=args.residual_dtype) if kept else total, stats


def backward(args: NormGrads) -> Grads:
    """Gradients of `forward`; see `Grads`."""
    total, weight = args.total, args.weight
    wide = torch.promote_types(total.dtype, torch.float32)
    rstd, mean = (args.stats[0], args.stats[1]) if args.centered else (args.stats, None)
    rows = (*total.shape[:-1], 1)
    unit = total.to(wide) if mean is None else total.to(wide) - mean.view(rows)
    unit = unit * rstd.view(rows)
    dy = args.d_normed.to(wide)
    d_unit = dy * weight.to(wide)
    grad = d_unit - unit * (d_unit * unit).mean(-1, keepdim=True)
    if args.centered:
        grad = grad - d_unit.mean(-1, keepdim=True)
    grad = rstd.view(rows) * grad
    if args.d_total is not None:
        grad = grad + args.d_total.to(wide)
    width = weight.shape[0]
    d_weight = (dy * unit).reshape(-1, width).sum(0).to(weight.dtype)
    d_bias = dy.reshape(-1, width).sum(0).to(weight.dtype) if args.has_bias else None
    return Grads(grad.to(args.hidden_dtype), grad.to(total.dtype) if args.residual_apart else None, d_weight, d_bias)
