"""The long convolution's `torch.library` operator: schema, fake and autograd rules, and the backend table."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.eager import eager
from ssmvision.kernels.operators import define_operator
from ssmvision.kernels.s4nd import cuda, fft, toeplitz, volume
from ssmvision.kernels.s4nd.args import ConvArgs, ConvRequest

__all__ = ["OP", "long_conv"]

OP = "long_conv_nd"
logger = logging.getLogger("ssmvision")
_told: set[tuple[str, tuple[int, ...]]] = set()

registry.register(OP, registry.Backend(cuda.NAME, 40, cuda.can_run, cuda.forward, cuda.backward))
registry.register(OP, registry.Backend(volume.NAME, 30, volume.can_run, volume.forward, volume.backward))
registry.register(OP, registry.Backend(toeplitz.NAME, 20, toeplitz.can_run, toeplitz.forward, toeplitz.backward))
registry.register(OP, registry.Backend("fft", 10, lambda request: None, fft.forward, fft.backward))


def _backend(args: ConvArgs, backend: str) -> registry.Backend:
    rank, channels, features, _ = args.kernels[0].shape
    forced = toeplitz.NAME in (backend, os.environ.get(registry.ENV_VAR))
    request = ConvRequest(
        str(args.u.device),
        args.u.dtype,
        args.grid,
        systems=rank * channels * features,
        rank=rank,
        channels=channels,
        dense=args.dense,
        precision=args.precision,
        forced=forced,
    )
    chosen = registry.choose(OP, request, backend)
    if (request.device, args.grid) not in _told:
        _told.add((request.device, args.grid))
        reasons = "; ".join(f"{name}: {why}" for name, why in registry.explain(OP, request, backend).items() if why)
        logger.info("%s on %s, grid %s: backend %r (%s)", OP, *(request.device, args.grid, chosen.name), reasons)
    return chosen


def _forward(
    u: Tensor,
    kernels: Sequence[Tensor],
    centers: Sequence[int],
    D: Tensor | None,
    dense: bool,
    precision: str,
    backend: str,
) -> Tensor:
    args = ConvArgs(u, tuple(kernels), tuple(centers), D, dense, precision)
    if u.numel() == 0:
        return u.new_zeros(args.out_shape)
    with torch.autocast(u.device.type, enabled=False):
        y: Tensor = _backend(args, backend).forward(args)
    return y.contiguous()


def _forward_fake(
    u: Tensor,
    kernels: Sequence[Tensor],
    centers: Sequence[int],
    D: Tensor | None,
    dense: bool,
    precision: str,
    backend: str,
) -> Tensor:
    return u.new_empty(ConvArgs(u, tuple(kernels), tuple(centers), D, dense, precision).out_shape)


def _gradients(
    u: Tensor,
    kernels: Sequence[Tensor],
    centers: Sequence[int],
    D: Tensor | None,
    dense: bool,
    precision: str,
    backend: str,
    dout: Tensor,
    need_u: bool,
    need_kernels: bool,
) -> list[Tensor]:
    """Gradients of u, D and the kernels, in their dtypes; of one that nobody asked for, an empty tensor."""
    args = ConvArgs(u, tuple(kernels), tuple(centers), D, dense, precision)
    if u.numel() == 0:
        wanted = [u if need_u else None, D, *(kernels if need_kernels else [None] * len(kernels))]
        return [u.new_empty(0) if t is None else torch.zeros_like(t) for t in wanted]
    with torch.autocast(u.device.type, enabled=False):
        grads = _backend(args, backend).backward(args, dout, need_u, need_kernels)
    values = [grads.u, grads.D, *(grads.kernels or [None] * len(kernels))]
    inputs = [u, D, *kernels]
    taken = {t.untyped_storage().data_ptr() for t in (*inputs, dout) if t is not None}
    return [
        u.new_empty(0) if value is None or t is None else _own(value.to(t.dtype).contiguous(), taken)
        for value, t in zip(values, inputs, strict=True)
    ]


def _own(value: Tensor, taken: set[int]) -> Tensor:
    """The value, copied if its memory is taken: an operator's results may not share that of its inputs."""
    return value.clone() if value.untyped_storage().data_ptr() in taken else value


def _gradients_fake(
    u: Tensor,
    kernels: Sequence[Tensor],
    centers: Sequence[int],
    D: Tensor | None,
    dense: bool,
    precision: str,
    backend: str,
    dout: Tensor,
    need_u: bool,
    need_kernels: bool,
) -> list[Tensor]:
    wanted = [u if need_u else None, D, *(kernels if need_kernels else [None] * len(kernels))]
    return [u.new_empty(0) if t is None else t.new_empty(t.shape) for t in wanted]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    u, kernels, ctx.centers, D, ctx.dense, ctx.precision, ctx.backend = inputs
    ctx.n_kernels = len(kernels)
    ctx.save_for_backward(u, D, *kernels)


def _any(needs: Any) -> bool:
    return any(needs) if isinstance(needs, list | tuple) else bool(needs)


def _backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
    u, D, *kernels = ctx.saved_tensors
    need_u, need_kernels, _, need_skip, *_ = map(_any, ctx.needs_input_grad)
    options = (ctx.dense, ctx.precision, ctx.backend)
    du, d_skip, *d_kernels = long_conv_backward(u, kernels, ctx.centers, D, *options, dout, need_u, need_kernels)
    return (
        du if need_u else None,
        d_kernels if need_kernels else [None] * ctx.n_kernels,
        None,
        d_skip if need_skip else None,
        *(None,) * 3,
    )


_rule: dict[str, Any] = {"backward": _backward, "setup_context": _setup_context}
long_conv, long_conv_backward = eager(
    define_operator("long_conv_nd", _forward, _forward_fake, _gradients, _gradients_fake, **_rule),
    _forward,
    _gradients,
    **_rule,
)
