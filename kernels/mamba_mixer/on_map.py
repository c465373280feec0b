"""Layer norm over the channels of a map and the mixer over its positions, of which little but the map is kept.

For maps so large that what a mixer keeps for its backward, or even what a backward holds at once for a whole batch, is
too much: the backward computes everything again, sample by sample. The projections at both ends read and write the map
as it lies, so that nothing is transposed but by the norm.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ssmvision.kernels.branch.op import branch_norm, branch_norm_backward
from ssmvision.kernels.mamba_mixer import pack, passes
from ssmvision.kernels.mamba_mixer.args import Parameters, Weights
from ssmvision.kernels.mamba_mixer.op import autocast_off, spread

__all__ = ["MapSettings", "mixer_on_map"]


class MapSettings(NamedTuple):
    """What is no tensor: see `mamba_mixer`; eps of the norm, dtype of the mixer's activations."""

    routes: tuple[str, ...]
    merge: str
    backend: str
    eps: float
    dtype: torch.dtype


def mixer_on_map(x: Tensor, norm_weight: Tensor, norm_bias: Tensor, p: Parameters, settings: MapSettings) -> Tensor:
    """`mamba_mixer` of the layer-normed positions of a map, for callers whose parameters fit by construction.

    In eager mode only; there is no second derivative.

    Args:
        x: (B, C, L), contiguous, in any floating dtype. A position's channels are a token.
        norm_weight, norm_bias: (C,) of the layer norm.
        p: of the mixer.
        settings: routes, merge, backend, eps and dtype.

    Returns:
        (B, C, L) in x's dtype, contiguous.
    """
    out: Tensor = _MixerOnMap.apply(settings, x, norm_weight, norm_bias, *p.flat())  # type: ignore[no-untyped-call]
    return out


class _MixerOnMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: MapSettings, x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor) -> Tensor:
        p = Parameters.from_flat(parameters, len(s.routes))
        tools, layout = passes.toolbox(x.device, s.dtype, s.backend), pack.layout_of(p, s.dtype)
        with autocast_off(x.device.type):
            low, exact = pack.buffers(p, s.dtype, layout)
            tools.fill(p, layout, low, exact)
            w = pack.view(p, layout, low, exact)
            tokens = branch_norm(x, weight, bias, s.eps, s.dtype, True, "auto")[0]
            out = torch.empty_like(x)
            kept = [_forward_sample(tools, tokens[i : i + 1], w, s, out[i]) for i in range(len(x))]
        ctx.settings = s
        ctx.save_for_backward(x, weight, bias, low, exact, *chain.from_iterable(kept), *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        s: MapSettings = ctx.settings
        x, weight, bias, low, exact, *rest = ctx.saved_tensors
        kept, parameters = rest[: 2 * len(x)], rest[2 * len(x) :]
        p = Parameters.from_flat(parameters, len(s.routes))
        tools, w = passes.toolbox(x.device, s.dtype, s.backend), pack.view(p, pack.layout_of(p, s.dtype), low, exact)
        with autocast_off(x.device.type):
            tokens, mean, rstd = branch_norm(x, weight, bias, s.eps, s.dtype, True, "auto")
            dtokens = torch.empty_like(tokens)
            grads: Weights | None = None
            for i in range(len(x)):
                mine = _backward_sample(tools, dout[i], tokens[i : i + 1], p, w, kept[2 * i : 2 * i + 2], s, dtokens[i])
                if grads is None:
                    grads = mine
                else:
                    _add(grads, mine)
            assert grads is not None
            dx, dweight, dbias = branch_norm_backward(x, weight, mean, rstd, dtokens, True, "auto")
        return (None, dx, dweight, dbias.to(bias.dtype), *spread(grads, p))


def _forward_sample(
    tools: passes.Toolbox, tokens: Tensor, w: Weights, s: MapSettings, out: Tensor
) -> tuple[Tensor, Tensor]:
    """Fill out (C, L) from tokens (1, L, C); returns what `passes.gated_scan` gives for the backward."""
    y, *kept = passes.gated_scan(tools, tokens, w, s.routes, s.merge)
    if out.dtype == w.out_weight.dtype:
        torch.mm(w.out_weight, y[0].t(), out=out)
    else:
        out.copy_(torch.mm(w.out_weight, y[0].t()))
    if w.out_bias is not None:
        out += w.out_bias.unsqueeze(1)
    return kept[0], kept[1]


def _backward_sample(
    tools: passes.Toolbox,
    dout: Tensor,
    tokens: Tensor,
    p: Parameters,
    w: Weights,
    kept: tuple[Tensor, ...],
    s: MapSettings,
    dtokens: Tensor,
) -> Weights:
    """Fill dtokens (L, C) from dout (C, L) and tokens (1, L, C); returns the gradients of the stacked parameters."""
    absent = tokens.new_empty(0)
    x_dbl, entry = kept
    found = passes.Kept(absent, x_dbl, absent, absent, absent, entry)
    wide = dout.to(s.dtype).t().unsqueeze(0)
    return passes.backward(tools, wide, tokens, p, w, found, s.routes, s.merge, dtokens)[1]


def _add(total: Weights, part: Weights) -> None:
    for t, more in zip(total, part, strict=True):
        if t is not None and more is not None:
            t.add_(more)
