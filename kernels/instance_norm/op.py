"""The instance norm's `torch.library` operator: schema, fake and autograd rules, and its backend table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.eager import eager
from ssmvision.kernels.instance_norm import reference, triton
from ssmvision.kernels.operators import define_operator

__all__ = ["OP", "instance_norm"]

OP = "instance_norm"


def _anything(request: registry.Request) -> str | None:
    return None


registry.register(OP, registry.Backend("triton", 30, triton.can_run, triton.forward, triton.backward))
registry.register(OP, registry.Backend("reference", 0, _anything, reference.forward, reference.backward))


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, backend: str = "auto") -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the voxels of every channel (arXiv 1607.08022, eq. 4).

    Computed in at least float32. Gradients are deterministic; there is no second derivative.

    Args:
        x: (B, C, *spatial) in any floating dtype, with at least one voxel.
        weight, bias: (C,) in one dtype.
        eps: added to the variance.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, C, *spatial) in x's dtype, contiguous; no view, so that autograd copies nothing for what follows in place.

    Raises:
        ValueError: shapes or devices do not fit.
        TypeError: x is not a real floating-point tensor.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be a real floating-point tensor, got {x.dtype}")
    if x.dim() < 3 or x.numel() == 0:
        raise ValueError(f"x must be (B, C, *spatial) with at least one voxel, got {tuple(x.shape)}")
    for name, t in (("weight", weight), ("bias", bias)):
        if tuple(t.shape) != (x.shape[1],) or t.device != x.device or t.dtype != weight.dtype:
            want = f"({x.shape[1]},) on {x.device} in weight's dtype"
            raise ValueError(f"{name} must be {want}, got {tuple(t.shape)} on {t.device} in {t.dtype}")
    y: Tensor = torch.ops.aten._unsafe_view(_operator(x.flatten(2), weight, bias, eps, backend)[0], x.shape)
    return y


def _backend(x: Tensor, backend: str) -> registry.Backend:
    return registry.choose(OP, registry.Request(str(x.device), x.dtype), backend)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _backend(x, backend).forward(x, weight, bias, eps)
    return y, mean, rstd


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    wide = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = (x.new_empty(x.shape[:2], dtype=wide) for _ in range(2))
    return x.new_empty(x.shape), mean, rstd


def _gradients(
    x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight, dbias = _backend(x, backend).backward(x, weight, mean, rstd, dy)
    return dx, dweight, dbias


def _gradients_fake(
    x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(weight), torch.empty_like(weight)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, _, ctx.backend = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, weight, mean, rstd)
    ctx.mark_non_differentiable(mean, rstd)


def _autograd(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *_operator_backward(*ctx.saved_tensors, dy, ctx.backend), None, None


_rule: dict[str, Any] = {"backward": _autograd, "setup_context": _setup_context}
_operator, _operator_backward = eager(
    define_operator(OP, _forward, _forward_fake, _gradients, _gradients_fake, **_rule), _forward, _gradients, **_rule
)
