"""Chunked PyTorch backend: runs on any device, needs no compiler, and never materialises (B, L, E, N).

Time is walked in chunks. In a tile the decays exp(delta A) and inputs delta B u of all steps are
made by one broadcast each, and the recurrence is one fused multiply-add a step on the whole state. Where the state is
small, several chunks are scanned side by side from zero and their entry states, propagated by the chunks' total decay
exp(A sum delta), are added afterwards (Blelloch's two-level scan); no decay is ever divided by, so nothing overflows.
The backward starts every chunk from its saved entry state, recomputes the states, and walks the adjoint recurrence
g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.selective_scan.args import (
    Grads,
    ScanArgs,
    as_inputs,
    compute_dtype,
    gate_gradient,
    gated,
    merged_gradient,
)
from ssmvision.kernels.selective_scan.config import n_saved
from ssmvision.kernels.selective_scan.tiles import Plan, Tile, make_plan

__all__ = ["backward", "forward"]

LOG2E = math.log2(math.e)


class _Steps(NamedTuple):
    """A tile's inputs in scan order: u, raw, dt (T, G, b, K, E); B, C (T, G, b, K, N)."""

    u: Tensor
    raw: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor


class _Buffers:
    """Tile-sized work space, allocated once a call: fresh pages for every tile would cost as much as the arithmetic."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._kept: dict[tuple[str, torch.Size], tuple[Tensor, tuple[Tensor, ...]]] = {}

    def get(self, name: str, shape: torch.Size) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A buffer of `shape` with undefined content, and its views along the first axis."""
        if (name, shape) not in self._kept:
            buffer = torch.empty(shape, dtype=self._dtype, device=self._device)
            self._kept[name, shape] = buffer, buffer.unbind(0)
        return self._kept[name, shape]


class _States(NamedTuple):
    """Decays a and, after the recurrence, states h of a tile (T, G, b, K, N, E), each whole and step by step."""

    a: Tensor
    a_steps: tuple[Tensor, ...]
    h: Tensor
    h_steps: tuple[Tensor, ...]


def _plan(args: ScanArgs) -> Plan:
    return make_plan(args.routes, args.grid, args.x.shape[0], args.A[0].numel(), args.x.device)


def _load(args: ScanArgs, plan: Plan, tile: Tile, dtype: torch.dtype) -> _Steps:
    u = plan.gather(args.x, tile, dtype)
    raw = plan.gather(args.delta, tile, dtype)
    if args.delta_bias is not None:
        raw = raw + args.delta_bias.to(dtype)
    dt = F.softplus(raw) if args.delta_softplus else raw
    mask = plan.mask(tile, dt)
    if mask is not None:
        dt = dt * mask  # a step of size zero keeps the state and adds nothing
    return _Steps(u, raw, dt, plan.gather(args.B, tile, dtype), plan.gather(args.C, tile, dtype))


def _decay_and_input(steps: _Steps, A2: Tensor, buffers: _Buffers) -> _States:
    """Decays exp(delta A) and, in the states' place, the inputs delta B u; A2 is A log2(e), (K, N, E)."""
    shape = torch.Size((*steps.dt.shape[:-1], *A2.shape[1:]))
    a, a_steps = buffers.get("a", shape)
    h, h_steps = buffers.get("h", shape)
    torch.mul(steps.dt.unsqueeze(-2), A2, out=a).exp2_()  # exp_ is several times slower on some CPUs
    torch.mul((steps.dt * steps.u).unsqueeze(-2), steps.B.unsqueeze(-1), out=h)
    return _States(a, a_steps, h, h_steps)


def _recur(states: _States, entry: Tensor | None) -> None:
    """h_t += a_t h_{t-1} along the first axis, in place, from `entry` (zero where None)."""
    state = entry
    for a_t, h_t in zip(states.a_steps, states.h_steps, strict=True):
        if state is not None:
            h_t.addcmul_(a_t, state)
        state = h_t


def _scan_tile(steps: _Steps, A2: Tensor, state: Tensor, buffers: _Buffers) -> tuple[Tensor, Tensor, Tensor]:
    """States of every step (T, G, b, K, N, E), the chunks' entry states (G, b, K, N, E), and the state afterwards."""
    states = _decay_and_input(steps, A2, buffers)
    h = states.h
    if h.shape[1] == 1:
        entry = state.unsqueeze(0).clone()
        _recur(states, entry)
        return h, entry, h[-1, 0].clone()
    _recur(states, None)
    total = torch.exp2(steps.dt.sum(0).unsqueeze(-2) * A2)
    entries = [state]
    for decay, end in zip(total.unbind(0), h[-1].unbind(0), strict=True):
        entries.append(torch.addcmul(end, decay, entries[-1]))
    entry = torch.stack(entries[:-1])
    left = entry  # of the entry state after each step: (a_t ... a_0) entry
    for a_t in states.a_steps:
        left = a_t.mul_(left)
    return h.add_(states.a), entry, entries[-1]


def _contract(weights: Tensor, values: Tensor) -> Tensor:
    """Sum over states: (..., N) and (..., N, E) -> (..., E)."""
    return torch.matmul(weights.unsqueeze(-2), values).squeeze(-2)


def forward(args: ScanArgs, save_states: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scan.

    Returns:
        out (B, L, E), or (B, K, L, E) for merge "none", in x's dtype; the last states (B, K, E, N); the chunks' entry
        states and the last (chunks + 1, B, K, N, E), empty unless `save_states`; and, for `save_states` with a gate,
        out before the gate. States are in the compute dtype.
    """
    dtype, plan = compute_dtype(args.x, args.delta), _plan(args)
    A2 = args.A.to(dtype).transpose(1, 2).contiguous() * LOG2E
    routes, n_state, channels = A2.shape
    batch, length = args.x.shape[0], args.delta.shape[2]
    shape = (batch, routes, length, channels) if args.merge == "none" else (batch, length, channels)
    y_grid = torch.empty(shape, dtype=dtype, device=A2.device)
    if not plan.writes_once(y_grid):
        y_grid.zero_()
    last = torch.zeros(batch, routes, n_state, channels, dtype=dtype, device=A2.device)
    saved = torch.zeros(
        n_saved(length, A2.device.type) if save_states else 0, *last.shape, dtype=dtype, device=A2.device
    )
    buffers = _Buffers(dtype, A2.device)
    for tiles in plan.tiles(batch) if length else ():
        rows = slice(tiles[0].start, tiles[0].stop)
        state = last[rows]
        for tile in tiles:
            steps = _load(args, plan, tile, dtype)
            h, entry, state = _scan_tile(steps, A2, state, buffers)
            if save_states:
                saved[tile.chunk : tile.chunk + tile.chunks, rows] = entry
            y = _contract(steps.C, h)
            plan.scatter_add(y if args.D is None else y.addcmul_(args.D.to(dtype), steps.u), y_grid, tile)
        last[rows] = state
        if save_states:
            saved[-1, rows] = state
    out, ungated = gated(y_grid, args, save_states)
    return out, last.transpose(2, 3).contiguous(), saved, ungated


class _Grads:
    """Gradient accumulators in the compute dtype, in the shapes of the op's inputs (A as (K, N, E))."""

    def __init__(self, args: ScanArgs, dtype: torch.dtype) -> None:
        def zeros(like: Tensor) -> Tensor:
            return torch.zeros(like.shape, dtype=dtype, device=like.device)

        self.x, self.delta, self.B, self.C = (zeros(t) for t in (args.x, args.delta, args.B, args.C))
        self.A = zeros(args.A.transpose(1, 2))
        self.D = zeros(self.A[:, 0])
        self.bias = zeros(self.A[:, 0])


def _adjoint_tile(a_steps: tuple[Tensor, ...], g_steps: tuple[Tensor, ...], carry: Tensor, total: Tensor) -> Tensor:
    """g_t += a_{t+1} g_{t+1} in place, chunk by chunk from the last; returns the carry into the chunk before.

    Args:
        a_steps: decays, T of (G, b, K, N, E).
        g_steps: C_t dy_t on entry, dL/dh_t on return.
        carry: (b, K, N, E) a_0 g_0 of the chunk after the last one.
        total: (G, b, K, N, E) each chunk's product of decays.
    """
    single = total.shape[0] == 1
    if single:
        g_steps[-1].add_(carry)
    for t in range(len(g_steps) - 2, -1, -1):
        g_steps[t].addcmul_(a_steps[t + 1], g_steps[t + 1])
    out = a_steps[0] * g_steps[0]
    if single:
        return out[0]
    carries = [carry]
    for decay, local in zip(reversed(total.unbind(0)), reversed(out.unbind(0)), strict=True):
        carries.append(torch.addcmul(local, decay, carries[-1]))
    left = torch.stack(carries[-2::-1])
    for t in range(len(g_steps) - 1, -1, -1):
        g_steps[t].add_(left)
        left = left.mul_(a_steps[t])
    return carries[-1]


def _raw_step_gradient(steps: _Steps, d_dt: Tensor, mask: Tensor | None, delta_softplus: bool) -> Tensor:
    d_raw = d_dt if mask is None else d_dt * mask
    return d_raw * torch.sigmoid(steps.raw) if delta_softplus else d_raw


def _backward_tile(
    args: ScanArgs,
    plan: Plan,
    tile: Tile,
    A: Tensor,
    saved: Tensor,
    dy_grid: Tensor,
    carry: Tensor,
    grads: _Grads,
    buffers: _Buffers,
) -> Tensor:
    """Adds one tile's gradients; returns the adjoint's carry into the tile before."""
    dtype = A.dtype
    rows = slice(tile.start, tile.stop)
    steps = _load(args, plan, tile, dtype)
    dy = plan.gather(dy_grid, tile, dtype)
    mask = plan.mask(tile, dy)
    if mask is not None:
        dy = dy * mask
    A2 = A * LOG2E
    states = _decay_and_input(steps, A2, buffers)
    a, h = states.a, states.h
    entry = saved[tile.chunk : tile.chunk + tile.chunks, rows]
    _recur(states, entry)
    g, g_steps = buffers.get("g", h.shape)
    torch.mul(dy.unsqueeze(-2), steps.C.unsqueeze(-1), out=g)
    carry = _adjoint_tile(states.a_steps, g_steps, carry, torch.exp2(steps.dt.sum(0).unsqueeze(-2) * A2))

    plan.scatter_add(torch.matmul(h, dy.unsqueeze(-1)).squeeze(-1), grads.C, tile)
    plan.scatter_add(torch.matmul(g, (steps.dt * steps.u).unsqueeze(-1)).squeeze(-1), grads.B, tile)
    d_input = _contract(steps.B, g)  # dL/d(delta u)
    # dL/d(delta A) = g_t a_t h_{t-1}; the decays are not needed any more.
    a[1:] *= h[:-1]
    a[0] *= entry
    a *= g
    torch.mul(a, A, out=g)
    d_dt = g.sum(-2).addcmul_(d_input, steps.u)
    grads.A += a.mul_(steps.dt.unsqueeze(-2)).sum((0, 1, 2))
    du = d_input * steps.dt
    if args.D is not None:
        du.addcmul_(dy, args.D.to(dtype))
        grads.D += (dy * steps.u).sum((0, 1, 2))
    d_raw = _raw_step_gradient(steps, d_dt, mask, args.delta_softplus)
    grads.bias += d_raw.sum((0, 1, 2))
    plan.scatter_add(d_raw, grads.delta, tile)
    plan.scatter_add(du, grads.x, tile)
    return carry


def backward(args: ScanArgs, saved: Tensor, ungated: Tensor | None, dout: Tensor, dlast: Tensor | None) -> Grads:
    """Gradients of x, delta, A, B, C, D, z and delta_bias, each in its input's dtype (None where there is no input).

    Args:
        args: the forward's inputs.
        saved: the forward's entry states.
        ungated: the forward's out before the gate, where there is one.
        dout: gradient of out.
        dlast: gradient of the last states (B, K, E, N), or None.
    """
    dtype, plan = compute_dtype(args.x, args.delta), _plan(args)
    A = args.A.to(dtype).transpose(1, 2).contiguous()
    grads = _Grads(args, dtype)
    batch, length = args.x.shape[0], args.delta.shape[2]
    dy_grid = merged_gradient(dout.to(dtype), args)
    buffers = _Buffers(dtype, A.device)
    for tiles in plan.tiles(batch, reverse=True) if length else ():
        rows = slice(tiles[0].start, tiles[0].stop)
        carry = torch.zeros_like(saved[0, rows]) if dlast is None else dlast[rows].transpose(2, 3).to(dtype)
        for tile in tiles:
            carry = _backward_tile(args, plan, tile, A, saved, dy_grid, carry, grads, buffers)
    dD = None if args.D is None else grads.D
    dbias = None if args.delta_bias is None else grads.bias
    dz = None if args.z is None or ungated is None else gate_gradient(args.z, dout.to(dtype), ungated)
    all_grads = (grads.x, grads.delta, grads.A.transpose(1, 2), grads.B, grads.C, dD, dz, dbias)
    return as_inputs(all_grads, args)
