"""The mixer without gradients on a CPU: the convolution and one more compiled loop, between library GEMMs.

That loop makes the step sizes from their low rank, scans every direction, adds the directions up and gates the sum, all
from the parameters as they are: at batch 1, packing them and the small operations around the scan took longer than the
scan. Importing this module does not import numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.causal_conv import numba as causal_conv
from ssmvision.kernels.cpu.arrays import LANES
from ssmvision.kernels.cpu.threads import compiled, share_out
from ssmvision.kernels.mamba_mixer.args import Parameters

__all__ = ["infer", "takes"]


def takes(tokens: Tensor, p: Parameters) -> bool:
    """Whether `infer` can run: float32 throughout, and channels that fill whole vectors."""
    if p.A_log[0].shape[0] % LANES or tokens.dtype != torch.float32:
        return False
    return all(t.dtype == torch.float32 for t in p.flat())


def _flat(t: Tensor) -> Any:
    return t.detach().numpy().reshape(-1)


def infer(tokens: Tensor, p: Parameters, routes: tuple[str, ...], merge: str) -> Tensor:
    """The mixer's result.

    Args:
        tokens: (B, L, D), such as `takes` allows.
        p: the parameters.
        routes: K times "forward" or "backward".
        merge: "sum" or "mean".

    Returns:
        (B, L, D).
    """
    batch, length, _ = tokens.shape
    (inner, state), rank, count = p.A_log[0].shape, p.dt_weight[0].shape[1], len(routes)
    xz = F.linear(tokens, p.in_weight, p.in_bias).contiguous()
    u = tokens.new_empty(count, batch, length, inner)
    taps = torch.stack([w.reshape(inner, -1) for w in p.conv_weight])
    bias = torch.stack(p.conv_bias) if p.conv_bias else None
    causal_conv.forward(xz[..., :inner], taps, bias, routes, True, out=u.transpose(0, 1))
    x_dbl = tokens.new_empty(count, batch * length, rank + 2 * state)
    for rows, weight, low in zip(u.flatten(1, 2), p.x_weight, x_dbl, strict=True):
        torch.mm(rows, weight.detach().t(), out=low)

    y = tokens.new_empty(batch, length, inner)
    sizes = (batch, count, length, inner, state, rank)
    gate, strides = _flat(xz)[inner:], (length * 2 * inner, 2 * inner)
    per_route = (tuple(map(_flat, group)) for group in (p.A_log, p.D, p.dt_weight, p.dt_bias))
    scale = np.float32(1 / count if merge == "mean" else 1)
    arguments = (
        sizes,
        _flat(u),
        _flat(x_dbl),
        gate,
        strides,
        *per_route,
        causal_conv.runs_backward(routes),
        scale,
        _flat(y),
    )
    share_out(compiled("mamba_mixer", "mixer_scan"), batch * inner // LANES, count * length * (state + 2), *arguments)
    return F.linear(y, p.out_weight, p.out_bias)
