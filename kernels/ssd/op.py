"""SSD's `torch.library` operators: schema, fake and autograd rules, and the backend table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.ssd import on_map

__all__ = ["OP", "ssd"]

OP = "ssd"

registry.register(OP, registry.Backend("chunked", 10, lambda request: None, on_map.forward, on_map.backward))


def _backend(x: Tensor, backend: str) -> registry.Backend:
    return registry.choose(OP, registry.Request(str(x.device), x.dtype), backend)


def _forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    routes: str,
    merge: str,
    backend: str,
) -> Tensor:
    args = on_map.SsdArgs(x, delta, A, B, C, D, tuple(routes.split(",")), merge)
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _backend(x, backend).forward(args)
    return out


def _forward_fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _gradients(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    routes: str,
    merge: str,
    backend: str,
    dout: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six tensors, contiguous in their dtypes; of an absent D, an empty tensor."""
    args = on_map.SsdArgs(x, delta, A, B, C, D, tuple(routes.split(",")), merge)
    with torch.autocast(x.device.type, enabled=False):
        grads = _backend(x, backend).backward(args, dout)
    inputs = (x, delta, A, B, C, D)
    shaped = (
        x.new_empty(0) if t is None else g.reshape(t.shape).to(t.dtype).contiguous()
        for g, t in zip(grads, inputs, strict=True)
    )
    return tuple(shaped)  # type: ignore[return-value]


def _gradients_fake(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs: tuple[Tensor | None, ...] = (x, *rest[:5])
    return tuple(x.new_empty(0) if t is None else t.new_empty(t.shape) for t in inputs)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.routes, ctx.merge, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    grads = ssd_backward(*tensors, ctx.routes, ctx.merge, ctx.backend, dout)
    return (*(None if t is None else g for g, t in zip(grads, tensors, strict=True)), *(None,) * 3)


ssd, ssd_backward = define_operator(
    OP,
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
)
