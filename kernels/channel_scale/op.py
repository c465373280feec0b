"""The operator of the channel scale: schema, fake and autograd rules, and the backend table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.channel_scale import cuda, reference
from ssmvision.kernels.operators import define_operator

__all__ = ["OP", "scale"]

OP = "channel_scale"

registry.register(OP, registry.Backend("cuda", 30, cuda.can_run, cuda.forward, reference.backward))
registry.register(OP, registry.Backend("reference", 0, lambda request: None, reference.forward, reference.backward))


def _backend(t: Tensor, backend: str) -> registry.Backend:
    return registry.choose(OP, registry.Request(str(t.device), t.dtype), backend)


def _forward(first: Tensor, second: Tensor | None, weights: Tensor, backend: str) -> Tensor:
    with torch.autocast(first.device.type, enabled=False):
        out: Tensor = _backend(first, backend).forward(first, second, weights)
    return out.contiguous()


def _forward_fake(first: Tensor, second: Tensor | None, weights: Tensor, backend: str) -> Tensor:
    return first.new_empty(first.shape)


def _gradients(
    first: Tensor, second: Tensor | None, weights: Tensor, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of an absent map, an empty tensor."""
    with torch.autocast(first.device.type, enabled=False):
        dfirst, dsecond, dweights = _backend(first, backend).backward(first, second, weights, dout)
    return dfirst, first.new_empty(0) if dsecond is None else dsecond, dweights


def _gradients_fake(
    first: Tensor, second: Tensor | None, weights: Tensor, backend: str, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dsecond = first.new_empty(0 if second is None else second.shape)
    return first.new_empty(first.shape), dsecond, weights.new_empty(weights.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    first, second, weights = ctx.saved_tensors
    dfirst, dsecond, dweights = scale_backward(first, second, weights, ctx.backend, dout)
    return dfirst, None if second is None else dsecond, dweights, None


scale, scale_backward = define_operator(
    OP,
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
)
