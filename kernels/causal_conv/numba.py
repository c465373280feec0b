"""Numba backend: all directions from one read of x, SiLU included; arguments and results are the reference's.

Importing this module does not import numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmvision.kernels.cpu.arrays import LANES, filled, flat, whole_vectors
from ssmvision.kernels.cpu.numba import can_run
from ssmvision.kernels.cpu.threads import share_out

__all__ = ["backward", "can_run", "forward"]


def _kernel(name: str) -> Any:
    return getattr(import_module("ssmvision.kernels.causal_conv.numba_kernels"), name)


def _inputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, routes: tuple[str, ...], silu: bool
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Sizes, and the rest of what both kernels take, E filled up to whole vectors."""
    channels = whole_vectors(x.shape[2])
    sizes = (x.shape[0], len(routes), x.shape[1], channels, weight.shape[2])
    offset = torch.zeros(len(routes), channels) if bias is None else filled(bias, channels)
    given, strides = flat(filled(x, channels))
    taps = filled(weight.transpose(1, 2), channels).contiguous()
    reverse = np.array([route == "backward" for route in routes])
    return sizes, (given, strides[:2], flat(taps)[0], flat(offset.contiguous())[0], reverse, silu)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routes: tuple[str, ...],
    silu: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve every direction; see `reference.forward`."""
    if out is None:
        out = x.new_empty(x.shape[0], len(routes), *x.shape[1:])
    sizes, inputs = _inputs(x, weight, bias, routes, silu)
    batch, count, length, channels, width = sizes
    fits = out.dtype == torch.float32 and channels == x.shape[2] and out.stride(3) == 1
    made = out if fits else torch.empty(batch, count, length, channels)
    target, strides = flat(made)
    tasks = batch * count * channels // LANES
    share_out(_kernel("conv_forward"), tasks, length * width, sizes, *inputs, target, strides[:3])
    return out if fits else out.copy_(made[..., : x.shape[2]])


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routes: tuple[str, ...],
    silu: bool,
    dout: Tensor,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`; see `reference.backward`."""
    sizes, inputs = _inputs(x, weight, bias, routes, silu)
    batch, count, length, channels, width = sizes
    grad, strides = flat(filled(dout, channels))
    made = torch.empty(batch, length, channels)
    dweight, dbias = torch.empty(batch, count, width, channels), torch.empty(batch, count, channels)
    outputs = [flat(t)[0] for t in (made, dweight, dbias)]
    tasks, steps = batch * channels // LANES, 3 * count * length * width
    share_out(_kernel("conv_backward"), tasks, steps, sizes, *inputs, grad, strides[:3], *outputs)
    used, total = x.shape[2], made[..., : x.shape[2]]
    return (
        total.to(x.dtype) if dx is None else dx.copy_(total),
        dweight[..., :used].sum(0).transpose(1, 2).to(weight.dtype),
        None if bias is None else dbias[..., :used].sum(0).to(bias.dtype),
    )
