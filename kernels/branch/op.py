"""The branch's two `torch.library` operators: schema, fake and autograd rules, and their backend tables."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.branch import reference, triton
from ssmvision.kernels.eager import eager
from ssmvision.kernels.operators import define_operator

__all__ = ["NORM", "SUM", "branch_norm", "branch_sum"]

NORM, SUM = "branch_norm", "branch_sum"


def _anything(request: registry.Request) -> str | None:
    return None


registry.register(NORM, registry.Backend("triton", 30, triton.can_run, triton.norm_forward, triton.norm_backward))
registry.register(NORM, registry.Backend("reference", 0, _anything, reference.norm_forward, reference.norm_backward))
registry.register(SUM, registry.Backend("triton", 30, triton.can_run, triton.sum_forward, triton.sum_backward))
registry.register(SUM, registry.Backend("reference", 0, _anything, reference.sum_forward, reference.sum_backward))


@functools.lru_cache(maxsize=256)
def _dtype(*dtypes: torch.dtype) -> torch.dtype:
    return functools.reduce(torch.promote_types, dtypes)


def _backend(op: str, x: Tensor, channels: int, dtype: torch.dtype, backend: str) -> registry.Backend:
    # A map without elements, or more channels than a tile holds, is left to the reference.
    wish = backend if triton.fits(channels) and x.numel() else "reference"
    return registry.choose(op, registry.Request(str(x.device), dtype), wish)


# The norm


def _norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, last: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    if x.numel() == 0:
        return _norm_fake(x, weight, bias, eps, out_dtype, last, backend)
    run = _backend(NORM, x, x.shape[1], _dtype(x.dtype, weight.dtype, out_dtype), backend).forward
    y, mean, rstd = run(x, weight, bias, eps, out_dtype, last)
    return y, mean, rstd


def _norm_fake(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, last: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, channels, positions = x.shape
    shape = (batch, positions, channels) if last else (batch, channels, positions)
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty((batch, positions), dtype=wide) for _ in range(2))
    return x.new_empty(shape, dtype=out_dtype), mean, rstd


def _norm_gradients(
    x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor, last: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    run = _backend(NORM, x, x.shape[1], _dtype(x.dtype, weight.dtype, dy.dtype), backend).backward
    dx, d_weight, d_bias = run(x, weight, mean, rstd, dy, last)
    return dx.contiguous(), d_weight, d_bias


def _norm_gradients_fake(
    x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor, last: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(weight.shape)


def _norm_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, _, _, ctx.last, ctx.backend = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _norm_autograd(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    dx, d_weight, d_bias = branch_norm_backward(*ctx.saved_tensors, dy, ctx.last, ctx.backend)
    return dx, d_weight, d_bias, *(None,) * 4


# The sum


def _sum(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    out_dtype: torch.dtype,
    copy_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = _backend(SUM, x, 1, _dtype(x.dtype, branch.dtype, out_dtype), backend).forward
    total, copy = run(x, branch, gamma, keep, out_dtype, copy_dtype)
    return total, copy


def _sum_fake(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    out_dtype: torch.dtype,
    copy_dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    total = x.new_empty(x.shape, dtype=out_dtype)
    return total, x.new_empty(0) if copy_dtype is None else x.new_empty(x.shape, dtype=copy_dtype)


def _sum_gradients(
    branch: Tensor, gamma: Tensor | None, keep: Tensor | None, d_total: Tensor, d_copy: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """d_x (empty where it is d_total), d_branch, and d_gamma (empty without gamma)."""
    run = _backend(SUM, branch, 1, _dtype(branch.dtype, d_total.dtype), backend).backward
    d_x, d_branch, d_gamma = run(branch, gamma, keep, d_total, d_copy)
    empty = branch.new_empty(0)
    return empty if d_copy is None else d_x, d_branch, branch.new_empty(0) if d_gamma is None else d_gamma


def _sum_gradients_fake(
    branch: Tensor, gamma: Tensor | None, keep: Tensor | None, d_total: Tensor, d_copy: Tensor | None, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = branch.new_empty(0) if d_copy is None else d_total.new_empty(d_total.shape)
    d_gamma = branch.new_empty(0) if gamma is None else gamma.new_empty(gamma.shape)
    return d_x, branch.new_empty(branch.shape), d_gamma


def _sum_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, branch, gamma, keep, _, copy_dtype, ctx.backend = inputs
    # An unused output's gradient would otherwise arrive as zeros of its size.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(branch, gamma, keep)
    ctx.x_dtype, ctx.out_dtype, ctx.copies = x.dtype, output[0].dtype, copy_dtype is not None


def _sum_autograd(ctx: Any, d_total: Tensor | None, d_copy: Tensor | None) -> tuple[Tensor | None, ...]:
    branch, gamma, keep = ctx.saved_tensors
    d_copy = d_copy if ctx.copies else None
    if d_total is None:
        if d_copy is None:
            return (None,) * 7
        d_total, d_copy = d_copy.to(ctx.out_dtype), None
    d_x, d_branch, d_gamma = branch_sum_backward(branch, gamma, keep, d_total, d_copy, ctx.backend)
    d_x = d_total if d_copy is None else d_x
    return d_x.to(ctx.x_dtype), d_branch, None if gamma is None else d_gamma, *(None,) * 4


_norm_rule: dict[str, Any] = {"backward": _norm_autograd, "setup_context": _norm_context}
_sum_rule: dict[str, Any] = {"backward": _sum_autograd, "setup_context": _sum_context}
branch_norm, branch_norm_backward = eager(
    define_operator(NORM, _norm, _norm_fake, _norm_gradients, _norm_gradients_fake, **_norm_rule),
    _norm,
    _norm_gradients,
    **_norm_rule,
)
branch_sum, branch_sum_backward = eager(
    define_operator(SUM, _sum, _sum_fake, _sum_gradients, _sum_gradients_fake, **_sum_rule),
    _sum,
    _sum_gradients,
    **_sum_rule,
)
