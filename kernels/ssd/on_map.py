"""The chunked SSD of a map along its routes: gather, chunk, merge, and the same backwards."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.ssd import chunked
from ssmvision.kernels.ssd.config import chunk_sizes
from ssmvision.kernels.ssd.order import Order, make_order
from ssmvision.kernels.ssd.products import product_dtype, scaled

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
    """For M steps of every route x (B, K, M, H, P), delta (B, K, M, H), B and C (B, K, M, G, N); A (K, 1, H).

    x, B and C are in the dtype of products, delta and A in that of sums.
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor


def _gather(args: SsdArgs, order: Order) -> _Gathered:
    wide = _wide(args)
    operands = torch.bfloat16 if product_dtype(args.x) == torch.bfloat16 else wide
    x = order.gather(args.x.to(operands).flatten(1, -3), per_route=False)
    delta = order.without_padding(order.gather(args.delta.to(wide).flatten(2, -2), per_route=True))
    B, C = (order.gather(t.to(operands).flatten(2, -3), per_route=True) for t in (args.B, args.C))
    return _Gathered(x, delta, args.A.to(wide).unsqueeze(1), B, C)


def _wide(args: SsdArgs) -> torch.dtype:
    return torch.promote_types(torch.promote_types(args.x.dtype, args.delta.dtype), torch.float32)


def _chunk(t: Tensor, groups: int) -> Tensor:
    """(B, K, M, H, ...) -> (B K, c, G, H / G, Q, ...)."""
    count, length = chunk_sizes(t.shape[2])
    cut = t.reshape(-1, count, length, groups, t.shape[3] // groups, *t.shape[4:])
    return cut.movedim(2, 4)


def _unchunk(t: Tensor, like: Tensor) -> Tensor:
    """(B K, c, G, H / G, Q, ...) -> the shape of (B, K, M, H, ...)."""
    return t.movedim(4, 2).reshape(like.shape)


def _chunks(inputs: _Gathered) -> chunked.Chunks:
    groups = inputs.B.shape[3]
    x, delta = _chunk(inputs.x, groups), _chunk(inputs.delta, groups)
    a = _chunk(inputs.delta * inputs.A, groups)
    B, C = (_chunk(t, groups).squeeze(3) for t in (inputs.B, inputs.C))
    return chunked.Chunks(scaled(x, delta.unsqueeze(-1), x.dtype), a, B, C)


def _skip(args: SsdArgs, order: Order) -> Tensor | None:
    """Sum of the skip weights of the routes that visit a position: (*grid, H, 1), or (H, 1) if all visit all."""
    if args.D is None:
        return None
    D = args.D.to(_wide(args))
    if order.skipped is None:
        return D.sum(0).unsqueeze(-1)
    return ((~order.skipped).to(D.dtype).t() @ D).view(*args.x.shape[1:-1], 1)


def forward(args: SsdArgs) -> Tensor:
    """Out (B, *grid, H, P), contiguous, in x's dtype."""
    order = make_order(args.routes, tuple(args.delta.shape[2:-1]), args.x.device)
    inputs = _gather(args, order)
    y = _unchunk(chunked.forward(_chunks(inputs)), inputs.x)
    merged = order.scatter(y).sum(1, dtype=inputs.delta.dtype).view(args.x.shape)
    skip = _skip(args, order)
    if skip is not None:
        merged.addcmul_(skip, args.x)
    if args.merge == "mean":
        merged /= len(args.routes)
    return merged.to(args.x.dtype)


def backward(args: SsdArgs, dout: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x, delta, A, B, C and D, of the sizes of these."""
    order = make_order(args.routes, tuple(args.delta.shape[2:-1]), args.x.device)
    inputs = _gather(args, order)
    wide, groups = inputs.delta.dtype, inputs.B.shape[3]
    dmerged = dout.to(wide) / len(args.routes) if args.merge == "mean" else dout.to(wide)
    dy = order.without_padding(order.gather(dmerged.to(inputs.x.dtype).flatten(1, -3), per_route=False))
    grads = chunked.backward(_chunks(inputs), _chunk(dy, groups).contiguous())
    du, da = _unchunk(grads.u, inputs.x), _unchunk(grads.a, inputs.delta)
    dB, dC = (_unchunk(g.unsqueeze(3), inputs.B) for g in (grads.B, grads.C))
    ddelta = (du * inputs.x).sum(-1, dtype=wide) + da * inputs.A
    dA = (da * inputs.delta).sum((0, 2))
    dx = order.scatter(scaled(du, inputs.delta.unsqueeze(-1), du.dtype)).sum(1, dtype=wide).view(dout.shape)
    ddelta, dB, dC = (order.scatter(t) for t in (ddelta, dB, dC))
    skip = _skip(args, order)
    if skip is not None:
        dx.addcmul_(skip, dmerged)
    return dx, ddelta, dA, dB, dC, _skip_grad(args, order, dmerged)


def _skip_grad(args: SsdArgs, order: Order, dmerged: Tensor) -> Tensor | None:
    """That of D: (K, H)."""
    if args.D is None:
        return None
    each = (dmerged * args.x).sum(-1).sum(0).flatten(0, -2)  # (L, H)
    if order.skipped is None:
        return each.sum(0).expand_as(args.D)
    return (~order.skipped).to(each.dtype) @ each
