"""The mixer's forward and backward, as a sequence of library GEMMs and our kernels; autograd sees neither.

Activations between the convolution and the scan lie with the directions in front, (K, B, L, E), so that one batched
GEMM serves all directions; the scan and the convolution take them as (B, K, L, E) views.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.causal_conv import reference as conv_reference
from ssmvision.kernels.mamba_mixer import pack, reference
from ssmvision.kernels.mamba_mixer.args import Parameters, Weights
from ssmvision.kernels.selective_scan.args import ScanArgs

__all__ = ["KEEP", "Kept", "Toolbox", "backward", "forward", "toolbox"]

# What a forward keeps for its backward, beside the tokens and the packed parameters.
KEEP = ("nothing", "tokens", "activations", "states")


class Toolbox(NamedTuple):
    """The implementations that a call runs with."""

    scan: registry.Backend
    conv: Any
    gate_backward: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    fill: pack.Fill


def toolbox(device: torch.device, dtype: torch.dtype, backend: str) -> Toolbox:
    """CUDA kernels throughout where the scan's chosen backend is "cuda", plain PyTorch around any other."""
    scan = registry.choose("selective_scan", registry.Request(str(device), dtype), backend)
    if scan.name != "cuda":
        return Toolbox(scan, conv_reference, reference.gate_backward, pack.copy_entries)
    from ssmvision.kernels.causal_conv import cuda as conv_cuda
    from ssmvision.kernels.mamba_mixer import cuda

    return Toolbox(scan, conv_cuda, cuda.gate_backward, cuda.fill)


class Kept(NamedTuple):
    """Of a forward: xz (B, L, 2E), x_dbl (K, T, R + 2N) for T = B L, y before the gate (B, L, E), the scan's states.

    The members that were not kept are empty.
    """

    xz: Tensor
    x_dbl: Tensor
    y: Tensor
    states: Tensor


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(T, in) and (out, in) -> (T, out)."""
    return torch.mm(x, weight.t()) if bias is None else torch.addmm(bias, x, weight.t())


def _rows(t: Tensor) -> Tensor:
    """(B, K, L, C), of whatever strides, as (K, B L, C)."""
    return t.transpose(0, 1).flatten(1, 2)


class _Direction(NamedTuple):
    """What enters the scan: u and delta (B, K, L, E) and x_dbl (K, T, R + 2N)."""

    u: Tensor
    delta: Tensor
    x_dbl: Tensor


def _scan_inputs(tools: Toolbox, w: Weights, x: Tensor, routes: tuple[str, ...], x_dbl: Tensor | None) -> _Direction:
    batch, length, inner = x.shape
    rank = w.dt_weight.shape[-1]
    u = x.new_empty(len(routes), batch, length, inner)
    tools.conv.forward(x, w.conv_weight, w.conv_bias, routes, True, out=u.transpose(0, 1))
    if x_dbl is None:
        x_dbl = torch.bmm(u.flatten(1, 2), w.x_weight.transpose(1, 2))
    delta = torch.bmm(x_dbl[..., :rank], w.dt_weight.transpose(1, 2)).view(u.shape)
    return _Direction(u.transpose(0, 1), delta.transpose(0, 1), x_dbl)


def _scan_args(w: Weights, d: _Direction, z: Tensor | None, routes: tuple[str, ...], merge: str) -> ScanArgs:
    batch, _, length, _ = d.u.shape
    rank, state = w.dt_weight.shape[-1], w.A.shape[-1]
    grouped = d.x_dbl.unflatten(1, (batch, length)).transpose(0, 1)
    b, c = grouped[..., rank : rank + state], grouped[..., rank + state :]
    return ScanArgs(d.u, d.delta, w.A, b, c, w.D, z, w.dt_bias, True, routes, (length,), merge)


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
    inner = w.A.shape[1]
    xz = _linear(tokens.flatten(0, 1), w.in_weight, w.in_bias).view(*tokens.shape[:2], 2 * inner)
    x, z = xz.split(inner, dim=-1)
    d = _scan_inputs(tools, w, x, routes, None)
    args = _scan_args(w, d, z, routes, merge)
    out, _, states, y = tools.scan.forward(args, keep == "states")
    result = _linear(out.reshape(-1, inner), w.out_weight, w.out_bias).view(tokens.shape)
    if y is None:
        y = tokens.new_empty(0)
    if keep in ("nothing", "tokens"):
        return result, Kept(tokens.new_empty(0), tokens.new_empty(0), y, states)
    return result, Kept(xz, d.x_dbl, y, states)


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
    shape = (*tokens.shape[:2], 2 * inner)
    is_kept = kept.xz.dim() == 3
    xz = kept.xz if is_kept else _linear(tokens.flatten(0, 1), w.in_weight, w.in_bias).view(shape)
    d = _scan_inputs(tools, w, xz[..., :inner], routes, kept.x_dbl if is_kept else None)
    if kept.y.dim() == 3:
        return _Recomputed(xz, d, kept.y, kept.states)
    y, _, states, _ = tools.scan.forward(_scan_args(w, d, None, routes, merge), True)
    return _Recomputed(xz, d, y, states)


def _outer(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a^T b in a weight's dtype: (T, m) and (T, n) -> (m, n)."""
    if a.is_cuda and a.dtype != dtype == torch.float32:
        return torch.mm(a.t(), b, out_dtype=dtype)
    return torch.mm(a.t(), b).to(dtype)


def _outer_each(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`_outer` for every direction: (K, T, m) and (K, T, n) -> (K, m, n)."""
    return torch.stack([_outer(a_k, b_k, dtype) for a_k, b_k in zip(a.unbind(0), b.unbind(0), strict=True)])


def _scan_backward(
    tools: Toolbox, w: Weights, r: _Recomputed, dy: Tensor, routes: tuple[str, ...], merge: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u and x_dbl through the scan, and of dt_weight's delta rows, A, D and dt_bias."""
    rank, state = w.dt_weight.shape[-1], w.A.shape[-1]
    args = _scan_args(w, r.direction, None, routes, merge)
    du, ddelta, dA, dB, dC, dD, _, dbias = tools.scan.backward(args, r.states, None, dy, None)
    ddelta = _rows(ddelta)
    dx_dbl = torch.empty_like(r.direction.x_dbl)
    torch.bmm(ddelta, w.dt_weight, out=dx_dbl[..., :rank])
    dx_dbl[..., rank : rank + state].copy_(_rows(dB))
    dx_dbl[..., rank + state :].copy_(_rows(dC))
    return du, ddelta, dx_dbl, dA, dD, dbias


def backward(
    tools: Toolbox,
    dout: Tensor,
    tokens: Tensor,
    p: Parameters,
    w: Weights,
    kept: Kept,
    routes: tuple[str, ...],
    merge: str,
) -> tuple[Tensor, Weights]:
    """Gradients of the tokens, in their dtype, and of the stacked parameters, in the parameters' dtypes.

    Args:
        tools, tokens, w, routes, merge: as given to `forward`.
        dout: (B, L, D) gradient of its result, in the tokens' dtype.
        p: the parameters as they were given.
        kept: what `forward` kept.
    """
    inner = w.A.shape[1]
    flat, grad = tokens.flatten(0, 1), dout.reshape(-1, dout.shape[-1])
    r = _recompute(tools, tokens, w, kept, routes, merge)
    dxz = torch.empty_like(r.xz)
    flat_dxz, z = dxz.view(-1, 2 * inner), r.xz.view(-1, 2 * inner)[:, inner:]
    dy, gated = tools.gate_backward(torch.mm(grad, w.out_weight), z, r.y.view(-1, inner), flat_dxz[:, inner:])
    dout_weight = _outer(grad, gated, p.out_weight.dtype)
    del gated
    du, ddelta, dx_dbl, dA, dD, ddt_bias = _scan_backward(tools, w, r, dy.view(r.y.shape), routes, merge)

    d = r.direction
    ddt_weight = _outer_each(ddelta, d.x_dbl[..., : w.dt_weight.shape[-1]], p.dt_weight[0].dtype)
    del ddelta, dy
    dx_weight = _outer_each(dx_dbl, _rows(d.u), p.x_weight[0].dtype)
    du = _rows(du).baddbmm_(dx_dbl, w.x_weight).view(len(routes), *tokens.shape[:2], inner).transpose(0, 1)
    _, dconv_weight, dconv_bias = tools.conv.backward(
        r.xz[..., :inner], w.conv_weight, w.conv_bias, routes, True, du, dx=dxz[..., :inner]
    )
    grads = Weights(
        in_weight=_outer(flat_dxz, flat, p.in_weight.dtype),
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
    return torch.mm(flat_dxz, w.in_weight).view(tokens.shape), grads
