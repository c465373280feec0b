"""The convolution's `torch.library` operators: schema, fake and autograd rules, and the backend table.

Routes travel as one comma-separated string, because operator schemas have no list of strings that is traced everywhere.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.causal_conv import cuda, numba, reference
from ssmvision.kernels.operators import define_operator

__all__ = ["OP", "conv"]

OP = "causal_conv"

registry.register(OP, registry.Backend("cuda", 30, cuda.can_run, cuda.forward, cuda.backward))
registry.register(OP, registry.Backend("numba", 15, numba.can_run, numba.forward, numba.backward))
registry.register(OP, registry.Backend("reference", 0, lambda request: None, reference.forward, reference.backward))


def _backend(x: Tensor, backend: str) -> registry.Backend:
    return registry.choose(OP, registry.Request(str(x.device), x.dtype), backend)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, routes: str, silu: bool, backend: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _backend(x, backend).forward(x, weight, bias, tuple(routes.split(",")), silu)
    return out


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None, routes: str, silu: bool, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0], x.shape[1], x.shape[2])


def _gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, routes: str, silu: bool, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, dweight and dbias, each contiguous in its tensor's dtype; without a bias, an empty tensor."""
    with torch.autocast(x.device.type, enabled=False):
        run = _backend(x, backend).backward
        dx, dweight, dbias = run(x, weight, bias, tuple(routes.split(",")), silu, dout)
    return dx.contiguous(), dweight.contiguous(), x.new_empty(0) if dbias is None else dbias


def _gradients_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, routes: str, silu: bool, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = x.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.routes, ctx.silu, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = conv_backward(x, weight, bias, ctx.routes, ctx.silu, ctx.backend, dout)
    return dx, dweight, None if bias is None else dbias, None, None, None


conv, conv_backward = define_operator(
    "causal_conv",
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
)
