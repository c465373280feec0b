"""The operator of the channel means: schema, fake and autograd rules, and the backend table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.channel_means import cuda, reference
from ssmvision.kernels.operators import define_operator

__all__ = ["OP", "means"]

OP = "channel_means"

registry.register(OP, registry.Backend("cuda", 30, cuda.can_run, cuda.forward, cuda.backward))
registry.register(OP, registry.Backend("reference", 0, lambda request: None, reference.forward, reference.backward))


def _backend(x: Tensor, backend: str) -> registry.Backend:
    return registry.choose(OP, registry.Request(str(x.device), x.dtype), backend)


def _forward(x: Tensor, eps: float, backend: str) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _backend(x, backend).forward(x, eps)
    return out


def _forward_fake(x: Tensor, eps: float, backend: str) -> Tensor:
    return x.new_empty((x.shape[0], 2, x.shape[2]), dtype=torch.promote_types(x.dtype, torch.float32))


def _gradients(x: Tensor, eps: float, backend: str, dmeans: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        dx: Tensor = _backend(x, backend).backward(x, eps, dmeans)
    return dx


def _gradients_fake(x: Tensor, eps: float, backend: str, dmeans: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.eps, ctx.backend = inputs
    ctx.save_for_backward(x)


def _backward(ctx: Any, dmeans: Tensor) -> tuple[Tensor | None, ...]:
    return means_backward(*ctx.saved_tensors, ctx.eps, ctx.backend, dmeans), None, None


means, means_backward = define_operator(
    OP,
    _forward,
    _forward_fake,
    _gradients,
    _gradients_fake,
    backward=_backward,
    setup_context=_setup_context,
)
