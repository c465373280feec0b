"""The operator of addition and RMS norm: schema, fake and autograd rules, and the backend table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.add_norm import cuda, reference
from ssmvision.kernels.add_norm.reference import keeps_hidden
from ssmvision.kernels.operators import define_operator

__all__ = ["OP", "add_norm"]

OP = "add_rms_norm"

registry.register(OP, registry.Backend("cuda", 30, cuda.can_run, cuda.forward, cuda.backward))
registry.register(OP, registry.Backend("reference", 0, lambda request: None, reference.forward, reference.backward))


def _backend(total: Tensor, other: torch.dtype, backend: str) -> registry.Backend:
    request = registry.Request(str(total.device), torch.promote_types(total.dtype, other))
    return registry.choose(OP, request, backend)


def _forward(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    residual_dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(hidden.device.type, enabled=False):
        run = _backend(hidden, residual_dtype, backend).forward
        normed, total, rstd = run(hidden, residual, weight, eps, out_dtype, residual_dtype)
    return normed, total, rstd


def _forward_fake(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
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
        hidden.new_empty(rows, dtype=torch.promote_types(residual_dtype, torch.float32)),
    )


def _gradients(
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    hidden_dtype: torch.dtype,
    has_residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """d_hidden, d_residual and d_weight; an empty d_residual where it is absent or a copy of d_hidden."""
    with torch.autocast(total.device.type, enabled=False):
        run = _backend(total, hidden_dtype, backend).backward
        d_hidden, d_residual, d_weight = run(total, weight, rstd, d_normed, d_total, hidden_dtype, has_residual)
    return d_hidden, total.new_empty(0) if d_residual is None else d_residual, d_weight


def _gradients_fake(
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    hidden_dtype: torch.dtype,
    has_residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    apart = has_residual and hidden_dtype != total.dtype
    return (
        total.new_empty(total.shape, dtype=hidden_dtype),
        total.new_empty(total.shape if apart else 0),
        weight.new_empty(weight.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, residual, weight, _, _, residual_dtype, ctx.backend = inputs
    _, total, rstd = output
    # An unused output's gradient would otherwise arrive as zeros of its size.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden if keeps_hidden(hidden, residual, residual_dtype) else total, weight, rstd)
    ctx.mark_non_differentiable(rstd)
    ctx.hidden_dtype = hidden.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype


def _backward(ctx: Any, d_normed: Tensor | None, d_total: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    total, weight, rstd = ctx.saved_tensors
    has_residual, rest = ctx.residual_dtype is not None, (None,) * 4
    if d_total is not None and d_total.numel() != total.numel():  # of the residual that was left out
        d_total = None
    if d_normed is None:
        if d_total is None:
            return None, None, None, *rest
        return d_total.to(ctx.hidden_dtype), d_total.to(ctx.residual_dtype) if has_residual else None, None, *rest
    grads = add_norm_backward(total, weight, rstd, d_normed, d_total, ctx.hidden_dtype, has_residual, ctx.backend)
    d_hidden, d_residual, d_weight = grads
    if not has_residual:
        return d_hidden, None, d_weight, *rest
    wide = d_residual if ctx.hidden_dtype != total.dtype else d_hidden
    return d_hidden, wide.to(ctx.residual_dtype), d_weight, *rest


add_norm, add_norm_backward = define_operator(
    "add_rms_norm",
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
    mapped="the leading axes",
)
