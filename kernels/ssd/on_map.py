"""The chunked SSD of a map along its routes: gather, chunk, merge, and the same backwards."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.ssd import chunked
from ssmvision.kernels.ssd.config import chunk_sizes
from ssmvision.kernels.ssd.order import Order, make_order
from ssmvision.kernels.ssd.products import product_dtype

__all__ = ["SsdArgs", "backward", "forward"]


class SsdArgs(NamedTuple):
    """The op's inputs: x (B, *grid, H, P), delta (B, K, *grid, H), A and D (K, H), B and C (B, K, *grid, G, N)."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    routes: tuple[str, ...]
    merge: str


class _Gathered(NamedTuple):
    """x (B, K, M, H, P), delta (B, K, M, H), A and D (K, 1, H), B and C (B, K, M, G, N) for M steps of every route."""

    x: Tensor
    delta: Tensor
    A: Tensor
    D: Tensor | None
    B: Tensor
    C: Tensor


def _gather(args: SsdArgs, order: Order) -> _Gathered:
    dtype = torch.promote_types(torch.promote_types(args.x.dtype, args.delta.dtype), torch.float32)
    x = order.gather(args.x.to(dtype).flatten(1, -3), per_route=False)
    delta = order.without_padding(order.gather(args.delta.to(dtype).flatten(2, -2), per_route=True))
    B, C = (order.gather(t.to(dtype).flatten(2, -3), per_route=True) for t in (args.B, args.C))
    A, D = (None if t is None else t.to(dtype).unsqueeze(1) for t in (args.A, args.D))
    assert A is not None
    return _Gathered(x, delta, A, D, B, C)


def _chunk(t: Tensor, groups: int) -> Tensor:
    """(B, K, M, H, ...) -> (B K, c, G, Q, H / G, ...)."""
    count, length = chunk_sizes(t.shape[2])
    cut = t.reshape(-1, count, length, groups, t.shape[3] // groups, *t.shape[4:])
    return cut.transpose(2, 3)


def _unchunk(t: Tensor, like: Tensor) -> Tensor:
    """(B K, c, G, Q, H / G, ...) -> the shape of (B, K, M, H, ...)."""
    return t.transpose(2, 3).reshape(like.shape)


def _chunks(inputs: _Gathered) -> chunked.Chunks:
    groups = inputs.B.shape[3]
    u = _chunk(inputs.x * inputs.delta.unsqueeze(-1), groups)
    a = _chunk(inputs.delta * inputs.A, groups).transpose(-1, -2)
    B, C = (_chunk(t, groups).squeeze(4) for t in (inputs.B, inputs.C))
    return chunked.Chunks(u, a, B, C)


def forward(args: SsdArgs) -> Tensor:
    """Out (B, *grid, H, P), contiguous, in x's dtype."""
    order = make_order(args.routes, tuple(args.delta.shape[2:-1]), args.x.device)
    inputs = _gather(args, order)
    y = _unchunk(chunked.forward(_chunks(inputs), product_dtype(args.x)), inputs.x)
    if inputs.D is not None:
        y = y.addcmul(inputs.D.unsqueeze(-1), inputs.x)
    merged = order.scatter(y).sum(1)
    if args.merge == "mean":
        merged /= len(args.routes)
    return merged.view(args.x.shape).to(args.x.dtype)


def backward(args: SsdArgs, dout: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, delta, A, B, C and D, of the sizes of these."""
    order = make_order(args.routes, tuple(args.delta.shape[2:-1]), args.x.device)
    inputs = _gather(args, order)
    dmerged = dout.to(inputs.x.dtype).flatten(1, -3)
    if args.merge == "mean":
        dmerged = dmerged / len(args.routes)
    dy = order.without_padding(order.gather(dmerged, per_route=False))
    grads = chunked.backward(_chunks(inputs), _chunk(dy, inputs.B.shape[3]), product_dtype(args.x))
    du = _unchunk(grads.u, inputs.x)
    da = _unchunk(grads.a.transpose(-1, -2), inputs.delta)
    dB, dC = (_unchunk(g.unsqueeze(4), inputs.B) for g in (grads.B, grads.C))
    dx = du * inputs.delta.unsqueeze(-1)
    ddelta = (du * inputs.x).sum(-1) + da * inputs.A
    dA = (da * inputs.delta).sum((0, 2))
    dD = None
    if inputs.D is not None:
        dx.addcmul_(inputs.D.unsqueeze(-1), dy)
        dD = (dy * inputs.x).sum((0, 2, 4))
    ddelta, dB, dC = (order.scatter(t) for t in (ddelta, dB, dC))
    return order.scatter(dx).sum(1), ddelta, dA, dB, dC, dD
