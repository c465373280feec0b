"""The `torch.library` operators of the sub-grids: schemas, fakes and autograd rules, and the backend tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.subgrids import cuda, reference

__all__ = ["CONV", "NORM", "conv", "norm"]

CONV, NORM = "subgrid_conv", "subgrid_norm"

registry.register(CONV, registry.Backend("cuda", 30, cuda.can_run, cuda.conv_forward, cuda.conv_backward))
registry.register(
    CONV, registry.Backend("reference", 0, lambda request: None, reference.conv_forward, reference.conv_backward)
)
registry.register(NORM, registry.Backend("cuda", 30, cuda.can_run, cuda.norm_forward, reference.norm_backward))
registry.register(
    NORM, registry.Backend("reference", 0, lambda request: None, reference.norm_forward, reference.norm_backward)
)


def _backend(op: str, t: Tensor, backend: str) -> registry.Backend:
    return registry.choose(op, registry.Request(str(t.device), t.dtype), backend)


def _conv_forward(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _backend(CONV, x, backend).forward(x, weight, bias)
    return out


def _conv_forward_fake(x: Tensor, weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    batch, height, width, channels = x.shape
    return x.new_empty(4, batch, (height + 1) // 2, (width + 1) // 2, channels)


def _conv_gradients(
    x: Tensor, weight: Tensor, bias: Tensor, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        dx, dweight, dbias = _backend(CONV, x, backend).backward(x, weight, bias, dout)
    return dx, dweight, dbias


def _conv_gradients_fake(
    x: Tensor, weight: Tensor, bias: Tensor, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _conv_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _conv_backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return (*conv_gradients(*ctx.saved_tensors, ctx.backend, dout), None)


def _norm_forward(
    y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool, backend: str
) -> Tensor:
    with torch.autocast(y.device.type, enabled=False):
        out: Tensor = _backend(NORM, y, backend).forward(y, gate, weight, bias, eps, silu)
    return out


def _norm_forward_fake(
    y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool, backend: str
) -> Tensor:
    return y.new_empty(gate.shape)


def _norm_gradients(
    y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(y.device.type, enabled=False):
        dy, dgate, dweight, dbias = _backend(NORM, y, backend).backward(y, gate, weight, bias, eps, silu, dout)
    return dy, dgate, dweight, dbias


def _norm_gradients_fake(
    y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dy, dgate, dweight, dbias = (t.new_empty(t.shape) for t in (y, gate, weight, bias))
    return dy, dgate, dweight, dbias


def _norm_setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.silu, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _norm_backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return (*norm_gradients(*ctx.saved_tensors, ctx.eps, ctx.silu, ctx.backend, dout), None, None, None)


conv, conv_gradients = define_operator(
    CONV,
    _conv_forward,
    _conv_forward_fake,
    _conv_gradients,
    _conv_gradients_fake,
    backward=_conv_backward,
    setup_context=_conv_setup_context,
)
norm, norm_gradients = define_operator(
    NORM,
    _norm_forward,
    _norm_forward_fake,
    _norm_gradients,
    _norm_gradients_fake,
    backward=_norm_backward,
    setup_context=_norm_setup_context,
)
