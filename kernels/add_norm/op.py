"""The operator of addition and norm: schema, fake and autograd rules, and the backend table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.add_norm import cuda, reference
from ssmvision.kernels.add_norm.args import NormArgs, NormGrads, keeps_hidden
from ssmvision.kernels.operators import define_operator

__all__ = ["OP", "add_norm"]

OP = "add_norm"

registry.register(OP, registry.Backend("cuda", 30, cuda.can_run, cuda.forward, cuda.backward))
registry.register(OP, registry.Backend("reference", 0, lambda request: None, reference.forward, reference.backward))


def _backend(total: Tensor, other: torch.dtype, backend: str) -> registry.Backend:
    request = registry.Request(str(total.device), torch.promote_types(total.dtype, other))
    return registry.choose(OP, request, backend)


def _forward(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    centered: bool,
    eps: float,
    out_dtype: torch.dtype,
    residual_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    args = NormArgs(hidden, residual, weight, bias, centered, eps, out_dtype, residual_dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        normed, total, stats = _backend(hidden, residual_dtype, backend).forward(args)
    return normed, total, stats


def _forward_fake(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    centered: bool,
    eps: float,
    out_dtype: torch.dtype,
    residual_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = keeps_hidden(hidden, residual, residual_dtype)
    rows = 1
    for size in hidden.shape[:-1]:
        rows = rows * size
    return (
        hidden.new_empty(hidden.shape, dtype=out_dtype),
        hidden.new_empty(0 if kept else hidden.shape, dtype=residual_dtype),
        hidden.new_empty((2, rows) if centered else rows, dtype=torch.promote_types(residual_dtype, torch.float32)),
    )


def _gradients(
    total: Tensor,
    weight: Tensor,
    stats: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    hidden_dtype: torch.dtype,
    has_residual: bool,
    has_bias: bool,
    centered: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `Grads`, with empty tensors in the place of None."""
    args = NormGrads(total, weight, stats, d_normed, d_total, hidden_dtype, has_residual, has_bias, centered)
    with torch.autocast(total.device.type, enabled=False):
        grads = _backend(total, hidden_dtype, backend).backward(args)
    residual = total.new_empty(0) if grads.residual is None else grads.residual
    return grads.hidden, residual, grads.weight, weight.new_empty(0) if grads.bias is None else grads.bias


def _gradients_fake(
    total: Tensor,
    weight: Tensor,
    stats: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    hidden_dtype: torch.dtype,
    has_residual: bool,
    has_bias: bool,
    centered: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    apart = has_residual and hidden_dtype != total.dtype
    return (
        total.new_empty(total.shape, dtype=hidden_dtype),
        total.new_empty(total.shape if apart else 0),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape if has_bias else 0),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, residual, weight, bias, ctx.centered, _, _, residual_dtype, ctx.backend = inputs
    _, total, stats = output
    # An unused output's gradient would otherwise arrive as zeros of its size.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden if keeps_hidden(hidden, residual, residual_dtype) else total, weight, stats)
    ctx.mark_non_differentiable(stats)
    ctx.hidden_dtype, ctx.has_bias = hidden.dtype, bias is not None
    ctx.residual_dtype = None if residual is None else residual.dtype


def _backward(ctx: Any, d_normed: Tensor | None, d_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    total, weight, stats = ctx.saved_tensors
    has_residual, rest = ctx.residual_dtype is not None, (None,) * 5
    if d_total is not None and d_total.numel() != total.numel():  # of the residual that was left out
        d_total = None
    if d_normed is None:
        if d_total is None:
            return None, None, None, None, *rest
        residual = d_total.to(ctx.residual_dtype) if has_residual else None
        return d_total.to(ctx.hidden_dtype), residual, None, None, *rest
    about = (ctx.hidden_dtype, has_residual, ctx.has_bias, ctx.centered, ctx.backend)
    d_hidden, d_residual, d_weight, d_bias = add_norm_backward(total, weight, stats, d_normed, d_total, *about)
    parameters = (d_weight, d_bias if ctx.has_bias else None)
    if not has_residual:
        return d_hidden, None, *parameters, *rest
    wide = d_residual if ctx.hidden_dtype != total.dtype else d_hidden
    return d_hidden, wide.to(ctx.residual_dtype), *parameters, *rest


add_norm, add_norm_backward = define_operator(
    OP,
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
    mapped="the leading axes",
)
