"""Numba backend: all directions from one read of x, SiLU included; arguments and results are the reference's.

Importing this module does not import numba.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.cpu.arrays import LANES, filled, flat, whole_vectors
from ssmvision.kernels.cpu.numba import can_run
from ssmvision.kernels.cpu.threads import compiled, share_out

__all__ = ["backward", "can_run", "forward", "runs_backward"]


def _inputs(
    x: Tensor, weight: Tensor, bias: Tensor | None, routes: tuple[str, ...], silu: bool
) -> tuple[tuple[int, ...], tuple[Any, ...]]:
    """Sizes, and the rest of what both kernels take, E filled up to whole vectors."""
    channels = whole_vectors(x.shape[2])
    sizes = (x.shape[0], len(routes), x.shape[1], channels, weight.shape[2])
    offset = torch.zeros(len(routes), channels) if bias is None else filled(bias, channels)
    given, strides = flat(filled(x, channels))
    taps = weight.detach().float()
    if channels != x.shape[2]:
        taps = F.pad(taps, (0, 0, 0, channels - x.shape[2]))
    constants = (t.reshape(-1).numpy() for t in (taps, offset))
    return sizes, (given, strides[:2], *constants, runs_backward(routes), silu)


@lru_cache(maxsize=16)
def runs_backward(routes: tuple[str, ...]) -> Any:
    """For each direction whether it walks from the end, as compiled loops take it (K,)."""
    return np.array([route == "backward" for route in routes])


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
    batch, count, length, channels, _ = sizes
    fits = out.dtype == torch.float32 and channels == x.shape[2] and out.stride(3) == 1
    made = out if fits else torch.empty(batch, count, length, channels)
    target, strides = flat(made)
    tasks = batch * count * channels // LANES
    share_out(compiled("causal_conv", "conv_forward"), tasks, 4 * length, sizes, *inputs, target, strides[:3])
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
    share_out(compiled("causal_conv", "conv_backward"), tasks, steps, sizes, *inputs, grad, strides[:3], *outputs)
    used, total = x.shape[2], made[..., : x.shape[2]]
    return (
        total.to(x.dtype) if dx is None else dx.copy_(total),
        dweight[..., :used].sum(0).transpose(1, 2).to(weight.dtype),
        None if bias is None else dbias[..., :used].sum(0).to(bias.dtype),
    )
