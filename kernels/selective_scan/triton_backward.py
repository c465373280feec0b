"""Triton kernels of the scan's backward: the adjoint g_t = C_t dy_t + exp(delta_{t+1} A) g_{t+1}, walked from the end.

States are recomputed chunk by chunk from the saved ones, into a scratch that holds a chunk's states for every program.
"""

# triton ships no types, so its decorators have none
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

import triton
import triton.language as tl

from ssmvision.kernels.selective_scan.triton_steps import (
    LOG2E,
    UNSPECIALIZED,
    T,
    load_position,
    load_row,
    load_tile,
    load_vector,
    sigmoid,
    step_size,
    store_tile,
    where,
)

__all__ = ["gate_backward", "scan_adjoint", "scan_backward"]


@triton.jit
def _load_dy(dout: T, z: T, at: T, e: T, channels: T, scale: T) -> T:
    """Gradient of y at a position: dout times `scale`, through the gate."""
    dy = load_row(dout, at, e, channels) * scale
    if z is not None:
        gate = load_row(z, at, e, channels)
        dy *= gate * sigmoid(gate)
    return dy


@triton.jit(do_not_specialize=UNSPECIALIZED)
def scan_adjoint(
    delta: T, A: T, C: T, z: T, bias: T, dout: T, route: T, lengths: T, end: T, sum_dt: T, scale: T,
    g_batch: T, g_route: T, length: T, channels: T, n_routes: T, n_rows: T, max_steps: T, part_steps: T,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, SOFTPLUS: tl.constexpr,
) -> None:  # fmt: skip
    """The adjoint of a part of a route, from zero behind it.

    Writes what leaves it in front, `end` (parts, rows, N, E), and the sum of its steps (parts, rows, E).
    """
    e, row, part = where(n_rows, channels, BLOCK_E)
    n, k = tl.arange(0, BLOCK_N), row % n_routes
    start = part * part_steps
    stop = tl.minimum(start + part_steps, tl.load(lengths + k))
    route += k * max_steps
    dout += row // n_routes * g_batch + k * g_route
    if z is not None:
        z += row // n_routes * g_batch + k * g_route
    delta, C = delta + row * length * channels, C + row * length * N
    A2 = load_tile(A, k, n, e, channels, N) * LOG2E
    shift, total = load_vector(bias, k, e, channels), load_vector(None, k, e, channels)
    carry = load_tile(None, row, n, e, channels, N)

    at, next_at = load_position(route, stop - 1, start, stop), load_position(route, stop - 2, start, stop)
    next_raw, next_c = load_row(delta, at, e, channels), load_row(C, at, n, N)
    next_dy = _load_dy(dout, z, at, e, channels, scale)
    for i in range(start, stop):
        raw, dy, c = next_raw, next_dy, next_c
        next_raw, next_c = load_row(delta, next_at, e, channels), load_row(C, next_at, n, N)
        next_dy = _load_dy(dout, z, next_at, e, channels, scale)
        next_at = load_position(route, start + stop - 3 - i, start, stop)
        dt = step_size(raw + shift, SOFTPLUS)
        carry = tl.exp2(dt[None, :] * A2) * (carry + c[:, None] * dy[None, :])
        total += dt
    slot = part * n_rows + row
    store_tile(end, slot, carry, n, e, channels, N)
    tl.store(sum_dt + slot * channels + e, total, mask=e < channels)


@triton.jit
def _recompute(
    x: T, delta: T, B: T, route: T, scratch: T, state: T, A2: T, shift: T, n: T, e: T,
    first: T, stop: T, channels: T, N: tl.constexpr, BLOCK_E: tl.constexpr, SOFTPLUS: tl.constexpr,
) -> T:  # fmt: skip
    """Writes the state before every step of [first, stop) into the scratch; returns the state after the last."""
    lane = tl.arange(0, BLOCK_E)
    at, next_at = load_position(route, first, first, stop), load_position(route, first + 1, first, stop)
    next_u, next_raw, next_b = load_row(x, at, e, channels), load_row(delta, at, e, channels), load_row(B, at, n, N)
    for step in range(first, stop):
        u, raw, b = next_u, next_raw, next_b
        next_u, next_raw = load_row(x, next_at, e, channels), load_row(delta, next_at, e, channels)
        next_b = load_row(B, next_at, n, N)
        next_at = load_position(route, step + 2, first, stop)
        store_tile(scratch, step - first, state, n, lane, BLOCK_E, N)
        dt = step_size(raw + shift, SOFTPLUS)
        state = tl.exp2(dt[None, :] * A2) * state + b[:, None] * (dt * u)[None, :]
    return state


@triton.jit
def _load_step(
    x: T, delta: T, B: T, C: T, dout: T, z: T, at: T, e: T, n: T, channels: T, scale: T,
    N: tl.constexpr,
) -> T:  # fmt: skip
    """All that a step of the backward reads: x, delta (BLOCK_E,), B, C (BLOCK_N,) and the gradient of y (BLOCK_E,)."""
    u, raw, dy = (
        load_row(x, at, e, channels),
        load_row(delta, at, e, channels),
        _load_dy(dout, z, at, e, channels, scale),
    )
    return u, raw, load_row(B, at, n, N), load_row(C, at, n, N), dy


@triton.jit
def _step_gradients(
    after: T,
    before: T,
    carry: T,
    A: T,
    u: T,
    raw: T,
    b: T,
    c: T,
    dy: T,
    SOFTPLUS: tl.constexpr,
) -> T:
    """Gradients of u (without the skip), raw, B, C and A of one step, and the adjoint that leaves it in front.

    `before` and `after` are the states around the step, `carry` is the adjoint behind it.
    """
    dt = step_size(raw, SOFTPLUS)
    g = carry + c[:, None] * dy[None, :]
    dc, db = tl.sum(after * dy[None, :], 1), tl.sum(g * (dt * u)[None, :], 1)
    d_input = tl.sum(g * b[:, None], 0)  # of delta u
    carry = tl.exp2(dt[None, :] * (A * LOG2E)) * g
    d_exponent = carry * before  # of delta A
    d_raw = d_input * u + tl.sum(d_exponent * A, 0)
    if SOFTPLUS:
        d_raw *= sigmoid(raw)
    return d_input * dt, d_raw, db, dc, d_exponent * dt[None, :], carry


@triton.jit
def _chunk_backward(
    x: T, delta: T, B: T, C: T, dout: T, z: T, route: T, scratch: T, dx: T, ddelta: T, dB: T,
    dC: T, after: T, carry: T, A: T, shift: T, skip: T, sum_A: T, sum_D: T, sum_bias: T, n: T, e: T,
    first: T, stop: T, channels: T, scale: T, N: tl.constexpr, BLOCK_E: tl.constexpr, SOFTPLUS: tl.constexpr,
) -> T:  # fmt: skip
    """Walk [first, stop) backwards from the state `after` it; returns the adjoint in front of it and the sums."""
    lane = tl.arange(0, BLOCK_E)
    next_at, then = load_position(route, stop - 1, first, stop), load_position(route, stop - 2, first, stop)
    next_u, next_raw, next_b, next_c, next_dy = _load_step(x, delta, B, C, dout, z, next_at, e, n, channels, scale, N)
    next_before = load_tile(scratch, stop - 1 - first, n, lane, BLOCK_E, N)
    for i in range(first, stop):
        at, u, raw, b, c, dy, before = next_at, next_u, next_raw, next_b, next_c, next_dy, next_before
        next_at, then = then, load_position(route, first + stop - 3 - i, first, stop)
        next_u, next_raw, next_b, next_c, next_dy = _load_step(
            x, delta, B, C, dout, z, next_at, e, n, channels, scale, N
        )
        next_before = load_tile(scratch, tl.maximum(stop - 2 - i, 0), n, lane, BLOCK_E, N)
        du, d_raw, db, dc, d_A, carry = _step_gradients(after, before, carry, A, u, raw + shift, b, c, dy, SOFTPLUS)
        after = before
        sum_A, sum_D, sum_bias = sum_A + d_A, sum_D + dy * u, sum_bias + d_raw
        tl.store(dx + at * channels + e, du + skip * dy, mask=e < channels)
        tl.store(ddelta + at * channels + e, d_raw, mask=e < channels)
        tl.store(dB + at * N + n, db, mask=n < N)
        tl.store(dC + at * N + n, dc, mask=n < N)
    return carry, sum_A, sum_D, sum_bias


@triton.jit(do_not_specialize=UNSPECIALIZED)
def scan_backward(
    x: T, delta: T, A: T, B: T, C: T, D: T, z: T, bias: T, dout: T, route: T, lengths: T,
    saved: T, entry: T, scratch: T, dx: T, ddelta: T, dA: T, dB: T, dC: T, dD: T, dbias: T,
    scale: T, x_batch: T, x_route: T, g_batch: T, g_route: T, length: T, channels: T, n_routes: T,
    n_rows: T, first_row: T, group_rows: T, max_steps: T, part_steps: T,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of a part of a route; `entry` (parts, rows, N, E) is the adjoint behind it.

    Writes dx, ddelta (rows, L, E); and, to be summed, dB, dC (tiles of channels, rows, L, N), dA (parts, rows, N, E)
    and dD, dbias (parts, rows, E). A launch does rows [first_row, first_row + group_rows).
    """
    e, row, part = where(group_rows, channels, BLOCK_E)
    row += first_row
    n, k = tl.arange(0, BLOCK_N), row % n_routes
    start = part * part_steps
    stop = tl.minimum(start + part_steps, tl.load(lengths + k))
    scratch += tl.program_id(0).to(tl.int64) * (CHUNK * N * BLOCK_E)
    route += k * max_steps
    x += row // n_routes * x_batch + k * x_route
    dout += row // n_routes * g_batch + k * g_route
    if z is not None:
        z += row // n_routes * g_batch + k * g_route
    own, states = row * length * channels, row * length * N
    partial = (tl.program_id(0) % tl.cdiv(channels, BLOCK_E)).to(tl.int64) * n_rows * length * N + states
    delta, dx, ddelta = delta + own, dx + own, ddelta + own
    B, C, dB, dC = B + states, C + states, dB + partial, dC + partial
    A_k = load_tile(A, k, n, e, channels, N)
    shift, skip = load_vector(bias, k, e, channels), load_vector(D, k, e, channels)
    sum_A = load_tile(None, row, n, e, channels, N)
    sum_D, sum_bias = load_vector(None, k, e, channels), load_vector(None, k, e, channels)
    slot = part * n_rows + row
    carry = load_tile(entry, slot, n, e, channels, N)
    for i in range(tl.cdiv(tl.maximum(stop - start, 0), CHUNK)):
        chunk = tl.cdiv(stop, CHUNK) - 1 - i
        first, limit = chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, stop)
        state = load_tile(saved, chunk * n_rows + row, n, e, channels, N)
        tl.debug_barrier()  # what a lane reads of the scratch, another one may have written
        state = _recompute(
            x, delta, B, route, scratch, state, A_k * LOG2E, shift, n, e, first, limit, channels, N, BLOCK_E, SOFTPLUS
        )
        tl.debug_barrier()
        carry, sum_A, sum_D, sum_bias = _chunk_backward(
            x, delta, B, C, dout, z, route, scratch, dx, ddelta, dB, dC, state, carry, A_k, shift, skip, sum_A, sum_D,
            sum_bias, n, e, first, limit, channels, scale, N, BLOCK_E, SOFTPLUS,
        )  # fmt: skip
    store_tile(dA, slot, sum_A, n, e, channels, N)
    tl.store(dD + slot * channels + e, sum_D, mask=e < channels)
    tl.store(dbias + slot * channels + e, sum_bias, mask=e < channels)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gate_backward(dout: T, z: T, ungated: T, dz: T, count: T, BLOCK: tl.constexpr) -> None:
    """Gradient of out = ungated silu(z) in z."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    d = tl.load(dout + i, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(z + i, mask=inside, other=0.0).to(tl.float32)
    y = tl.load(ungated + i, mask=inside, other=0.0).to(tl.float32)
    s = sigmoid(gate)
    tl.store(dz + i, d * y * s * (1.0 + gate * (1.0 - s)), mask=inside)
