"""The mixer's forward and backward, as a sequence of library GEMMs and our kernels; autograd sees neither.

Activations between the convolution and the scan lie with the directions in front, (K, B, L, E), so that one batched
GEMM serves all directions; the scan and the convolution take them as (B, K, L, E) views.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.causal_conv import cuda as conv_cuda
from ssmvision.kernels.causal_conv import numba as conv_numba
from ssmvision.kernels.causal_conv import reference as conv_reference
from ssmvision.kernels.mamba_mixer import cuda, numba, pack, reference
from ssmvision.kernels.mamba_mixer.args import Parameters, Weights
from ssmvision.kernels.mamba_mixer.gemm import add_times_each, outer, outer_each, times_each
from ssmvision.kernels.selective_scan import cuda as scan_cuda
from ssmvision.kernels.selective_scan.args import ScanArgs

__all__ = ["KEEP", "Kept", "Toolbox", "backward", "forward", "gated_scan", "toolbox"]

# What a forward keeps for its backward, beside the tokens and the packed parameters.
KEEP = ("nothing", "tokens", "activations", "states", "everything")


class Toolbox(NamedTuple):
    """The implementations that a call runs with."""

    scan: registry.Backend
    conv: Any
    gate_backward: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    fill: Callable[[Parameters, pack.Plan, Tensor, Tensor], None]
    infer: Callable[[Tensor, Parameters, tuple[str, ...], str], Tensor] | None = None


def toolbox(device: torch.device, dtype: torch.dtype, backend: str) -> Toolbox:
    """The scan's chosen backend, with its own convolution where it has one and plain PyTorch around the rest."""
    return _toolbox(registry.choose("selective_scan", registry.Request(str(device), dtype), backend))


@lru_cache(maxsize=16)
def _toolbox(scan: registry.Backend) -> Toolbox:
    if scan.name == "cuda":
        return Toolbox(scan, conv_cuda, cuda.gate_backward, cuda.fill)
    if scan.name == "numba":
        return Toolbox(scan, conv_numba, reference.gate_backward, pack.copy_parameters, numba.infer)
    return Toolbox(scan, conv_reference, reference.gate_backward, pack.copy_parameters)


class Kept(NamedTuple):
    """Of a forward; what was not kept is empty.

    Shapes: xz (B, L, 2E), x_dbl (K, B, L, R + 2N), u and delta (K, B, L, E), y (the scan's result before the gate)
    (B, L, E); states as the scan's backend has them or, without y, what `gated_scan` gives beside its result.
    """

    xz: Tensor
    x_dbl: Tensor
    u: Tensor
    delta: Tensor
    y: Tensor
    states: Tensor

    def direction(self) -> _Direction | None:
        """What entered the scan, if it was kept."""
        if self.u.dim() != 4:
            return None
        return _Direction(*(t.transpose(0, 1) for t in (self.u, self.delta, self.x_dbl)))


class _Direction(NamedTuple):
    """What enters the scan: u and delta (B, K, L, E), and x_dbl (B, K, L, R + 2N)."""

    u: Tensor
    delta: Tensor
    x_dbl: Tensor


def _new(like: Tensor, routes: int, width: int) -> Tensor:
    """(B, K, L, width) with the directions in front in memory, for a `like` of (B, L, any)."""
    batch, length, _ = like.shape
    row = length * width
    return like.new_empty_strided((batch, routes, length, width), (row, batch * row, width, 1))


def _scan_inputs(tools: Toolbox, w: Weights, x: Tensor, routes: tuple[str, ...], kept: Tensor | None) -> _Direction:
    count, inner, rank = w.dt_weight.shape
    u, delta = _new(x, count, inner), _new(x, count, inner)
    tools.conv.forward(x, w.conv_weight, w.conv_bias, routes, True, out=u)
    if kept is None:
        x_dbl = _new(x, count, w.x_weight.shape[1])
        times_each(u, w.x_weight.transpose(1, 2), x_dbl)
    else:
        x_dbl = kept.transpose(0, 1)
    times_each(x_dbl[..., :rank], w.dt_weight.transpose(1, 2), delta)
    return _Direction(u, delta, x_dbl)


def _scan_args(w: Weights, d: _Direction, z: Tensor | None, routes: tuple[str, ...], merge: str) -> ScanArgs:
    rank, state = w.dt_weight.shape[-1], w.A.shape[-1]
    _, b, c = d.x_dbl.split((rank, state, state), dim=-1)
    return ScanArgs(d.u, d.delta, w.A, b, c, w.D, z, w.dt_bias, True, routes, (d.u.shape[2],), merge)


def forward(
    tools: Toolbox, tokens: Tensor, w: Weights, routes: tuple[str, ...], merge: str, keep: str
) -> tuple[Tensor, Kept]:
    """Run the mixer.

    Args:
        tools: the implementations.
        tokens: (B, L, D), contiguous, in the weights' dtype.
        w: the packed parameters.
        routes: K times "forward" or "backward".
        merge: "sum" or "mean".
        keep: one of `KEEP`.

    Returns:
        (B, L, D), and what is kept.
    """
    xz, d, args = _before_scan(tools, tokens, w, routes, merge)
    out, _, states, y = tools.scan.forward(args, keep in ("states", "everything"))
    result = F.linear(out, w.out_weight, w.out_bias)
    found: dict[str, Tensor] = {} if y is None else {"y": y}
    if keep not in ("nothing", "tokens"):
        found |= {"xz": xz, "x_dbl": d.x_dbl.transpose(0, 1)}
    if keep == "everything":
        found |= {"u": d.u.transpose(0, 1), "delta": d.delta.transpose(0, 1)}
    absent = {name: tokens.new_empty(0) for name in Kept._fields[:-1] if name not in found}
    return result, Kept(**found, **absent, states=states)


def _before_scan(
    tools: Toolbox, tokens: Tensor, w: Weights, routes: tuple[str, ...], merge: str
) -> tuple[Tensor, _Direction, ScanArgs]:
    """The input projection's result, what enters the scan, and the scan's arguments, gate included."""
    xz = F.linear(tokens, w.in_weight, w.in_bias)
    x, z = xz.split(w.A.shape[1], dim=-1)
    d = _scan_inputs(tools, w, x, routes, None)
    return xz, d, _scan_args(w, d, z, routes, merge)


def gated_scan(
    tools: Toolbox, tokens: Tensor, w: Weights, routes: tuple[str, ...], merge: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The mixer before its output projection (B, L, E), and what saves the backward time for little memory.

    That is x_dbl (K, B, L, R + 2N), and with a scan on CUDA the states entering its segments, else an empty tensor.
    """
    _, d, args = _before_scan(tools, tokens, w, routes, merge)
    x_dbl, none = d.x_dbl.transpose(0, 1), tokens.new_empty(0)
    if tools.scan.name != "cuda":
        return tools.scan.forward(args, False)[0], x_dbl, none
    entry = scan_cuda.segment_entries(args)
    return scan_cuda.forward(args, False, entry)[0], x_dbl, none if entry is None else entry


class _Recomputed(NamedTuple):
    xz: Tensor
    direction: _Direction
    y: Tensor
    states: Tensor


def _recompute(
    tools: Toolbox, tokens: Tensor, w: Weights, kept: Kept, routes: tuple[str, ...], merge: str
) -> _Recomputed:
    """Everything that the forward did not keep."""
    inner = w.A.shape[1]
    is_kept = kept.xz.dim() == 3
    xz = kept.xz if is_kept else F.linear(tokens, w.in_weight, w.in_bias)
    x_dbl = kept.x_dbl if kept.x_dbl.dim() == 4 else None
    d = kept.direction() or _scan_inputs(tools, w, xz[..., :inner], routes, x_dbl)
    if kept.y.dim() == 3:
        return _Recomputed(xz, d, kept.y, kept.states)
    args = _scan_args(w, d, None, routes, merge)
    if tools.scan.name == "cuda" and kept.states.numel():
        y, _, states, _ = scan_cuda.forward(args, True, kept.states)
    else:
        y, _, states, _ = tools.scan.forward(args, True)
    return _Recomputed(xz, d, y, states)


def _scan_backward(
    tools: Toolbox, w: Weights, r: _Recomputed, dy: Tensor, routes: tuple[str, ...], merge: str
) -> tuple[Tensor, ...]:
    """Gradients of u, delta and x_dbl, in their shapes, and of A, D and dt_bias."""
    args = _scan_args(w, r.direction, None, routes, merge)
    count, _, rank = w.dt_weight.shape
    dx_dbl = _new(dy, count, r.direction.x_dbl.shape[-1])
    state = w.A.shape[-1]
    low, b, c = dx_dbl.split((rank, state, state), dim=-1)
    into = {"into": (b, c)} if tools.scan.name == "cuda" else {}
    du, ddelta, dA, dB, dC, dD, _, dbias = tools.scan.backward(args, r.states, None, dy, None, **into)
    times_each(ddelta, w.dt_weight, low)
    for place, grad in ((b, dB), (c, dC)):
        if grad is not place:
            place.copy_(grad)
    return du, ddelta, dx_dbl, dA, dD, dbias


def _projection_gradients(p: Parameters, d: _Direction, dx_dbl: Tensor, ddelta: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x_weight and dt_weight, without the padding of the low rank."""
    rank, state = p.dt_weight[0].shape[-1], p.A_log[0].shape[-1]
    padded = dx_dbl.shape[-1] - 2 * state
    ddt_weight = outer_each(ddelta, d.x_dbl[..., :padded], p.dt_weight[0].dtype)
    dx_weight = outer_each(dx_dbl, d.u, p.x_weight[0].dtype)
    if padded == rank:
        return dx_weight, ddt_weight
    return torch.cat((dx_weight[:, :rank], dx_weight[:, padded:]), 1), ddt_weight[..., :rank].contiguous()


def backward(
    tools: Toolbox,
    dout: Tensor,
    tokens: Tensor,
    p: Parameters,
    w: Weights,
    kept: Kept,
    routes: tuple[str, ...],
    merge: str,
    dtokens: Tensor | None = None,
) -> tuple[Tensor, Weights]:
    """Gradients of the tokens, in their dtype, and of the stacked parameters, in the parameters' dtypes.

    Args:
        tools, tokens, w, routes, merge: as given to `forward`.
        dout: (B, L, D) gradient of its result, in the tokens' dtype.
        p: the parameters as they were given.
        kept: what `forward` kept.
        dtokens: where to write the tokens' gradient, (B L, D), or None.
    """
    inner = w.A.shape[1]
    flat, grad = tokens.flatten(0, 1), dout.reshape(-1, dout.shape[-1])
    r = _recompute(tools, tokens, w, kept, routes, merge)
    dxz = torch.empty_like(r.xz)
    flat_dxz, z = dxz.view(-1, 2 * inner), r.xz.view(-1, 2 * inner)[:, inner:]
    dy, gated = tools.gate_backward(torch.mm(grad, w.out_weight), z, r.y.view(-1, inner), flat_dxz[:, inner:])
    dout_weight = outer(grad, gated, p.out_weight.dtype)
    del gated
    du, ddelta, dx_dbl, dA, dD, ddt_bias = _scan_backward(tools, w, r, dy.view(r.y.shape), routes, merge)

    dx_weight, ddt_weight = _projection_gradients(p, r.direction, dx_dbl, ddelta)
    del ddelta, dy
    add_times_each(du, dx_dbl, w.x_weight)
    _, dconv_weight, dconv_bias = tools.conv.backward(
        r.xz[..., :inner], w.conv_weight, w.conv_bias, routes, True, du, dx=dxz[..., :inner]
    )
    grads = Weights(
        in_weight=outer(flat_dxz, flat, p.in_weight.dtype),
        in_bias=None if p.in_bias is None else flat_dxz.sum(0, dtype=p.in_bias.dtype),
        out_weight=dout_weight,
        out_bias=None if p.out_bias is None else grad.sum(0, dtype=p.out_bias.dtype),
        conv_weight=dconv_weight.to(p.conv_weight[0].dtype),
        conv_bias=None if dconv_bias is None else dconv_bias.to(p.conv_bias[0].dtype),
        x_weight=dx_weight,
        dt_weight=ddt_weight,
        dt_bias=ddt_bias.to(p.dt_bias[0].dtype),
        A=(dA * w.A).to(p.A_log[0].dtype),
        D=dD.to(p.D[0].dtype),
    )
    return torch.mm(flat_dxz, w.in_weight, out=dtokens).view(tokens.shape), grads
