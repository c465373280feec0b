"""Triton kernels of the scan's forward; triton.py puts them together."""

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

__all__ = ["merge_routes", "scan_carry", "scan_forward", "scan_part"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
def scan_forward(
    x: T, delta: T, A: T, B: T, C: T, D: T, bias: T, route: T, lengths: T,
    entry: T, y: T, saved: T, last: T,
    x_batch: T, x_route: T, length: T, channels: T, n_routes: T, n_rows: T, max_steps: T, part_steps: T,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, CHUNK: tl.constexpr, SOFTPLUS: tl.constexpr,
) -> None:  # fmt: skip
    """Scan a part of a route from its `entry` (parts, rows, N, E).

    Writes y (rows, L, E), the states `saved` at the chunks' entries (chunks, rows, N, E) and `last` (rows, N, E).
    """
    e, row, part = where(n_rows, channels, BLOCK_E)
    n, k = tl.arange(0, BLOCK_N), row % n_routes
    steps = tl.load(lengths + k)
    start = part * part_steps
    stop = tl.minimum(start + part_steps, steps)
    route += k * max_steps
    x += row // n_routes * x_batch + k * x_route
    delta, y = delta + row * length * channels, y + row * length * channels
    B, C = B + row * length * N, C + row * length * N
    A2 = load_tile(A, k, n, e, channels, N) * LOG2E
    shift, skip = load_vector(bias, k, e, channels), load_vector(D, k, e, channels)
    state = load_tile(entry, part * n_rows + row, n, e, channels, N)

    # A step is read one step ahead and its position two: nothing else hides the latency of a serial walk.
    next_at, after = load_position(route, start, start, stop), load_position(route, start + 1, start, stop)
    next_u, next_raw = load_row(x, next_at, e, channels), load_row(delta, next_at, e, channels)
    next_b, next_c = load_row(B, next_at, n, N), load_row(C, next_at, n, N)
    for chunk in range(start, stop, CHUNK):
        store_tile(saved, chunk // CHUNK * n_rows + row, state, n, e, channels, N)
        for step in range(chunk, tl.minimum(chunk + CHUNK, stop)):
            at, u, raw, b, c = next_at, next_u, next_raw, next_b, next_c
            next_at, after = after, load_position(route, step + 2, start, stop)
            next_u, next_raw = load_row(x, next_at, e, channels), load_row(delta, next_at, e, channels)
            next_b, next_c = load_row(B, next_at, n, N), load_row(C, next_at, n, N)
            dt = step_size(raw + shift, SOFTPLUS)
            state = tl.exp2(dt[None, :] * A2) * state + b[:, None] * (dt * u)[None, :]
            tl.store(y + at * channels + e, tl.sum(state * c[:, None], 0) + skip * u, mask=e < channels)
    if (stop == steps) & ((start < stop) | (part == 0)):
        store_tile(last, row, state, n, e, channels, N)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def scan_part(
    x: T, delta: T, A: T, B: T, bias: T, route: T, lengths: T, end: T, sum_dt: T,
    x_batch: T, x_route: T, length: T, channels: T, n_routes: T, n_rows: T, max_steps: T, part_steps: T,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, SOFTPLUS: tl.constexpr,
) -> None:  # fmt: skip
    """Scan a part of a route from zero.

    Writes its `end` state (parts, rows, N, E) and the sum of its steps (parts, rows, E).
    """
    e, row, part = where(n_rows, channels, BLOCK_E)
    n, k = tl.arange(0, BLOCK_N), row % n_routes
    start = part * part_steps
    stop = tl.minimum(start + part_steps, tl.load(lengths + k))
    route += k * max_steps
    x += row // n_routes * x_batch + k * x_route
    delta, B = delta + row * length * channels, B + row * length * N
    A2 = load_tile(A, k, n, e, channels, N) * LOG2E
    shift, total = load_vector(bias, k, e, channels), load_vector(None, k, e, channels)
    state = load_tile(None, row, n, e, channels, N)

    at, next_at = load_position(route, start, start, stop), load_position(route, start + 1, start, stop)
    next_u, next_raw, next_b = load_row(x, at, e, channels), load_row(delta, at, e, channels), load_row(B, at, n, N)
    for step in range(start, stop):
        u, raw, b = next_u, next_raw, next_b
        next_u, next_raw = load_row(x, next_at, e, channels), load_row(delta, next_at, e, channels)
        next_b = load_row(B, next_at, n, N)
        next_at = load_position(route, step + 2, start, stop)
        dt = step_size(raw + shift, SOFTPLUS)
        state = tl.exp2(dt[None, :] * A2) * state + b[:, None] * (dt * u)[None, :]
        total += dt
    slot = part * n_rows + row
    store_tile(end, slot, state, n, e, channels, N)
    tl.store(sum_dt + slot * channels + e, total, mask=e < channels)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def scan_carry(
    end: T, sum_dt: T, A: T, start: T, entry: T, channels: T, n_routes: T, n_rows: T, n_parts: T,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, REVERSE: tl.constexpr,
) -> None:  # fmt: skip
    """States `entry` (parts, rows, N, E) that enter the parts, from `start` (rows, N, E) or zero.

    With REVERSE the last part is entered first.
    """
    e, row, _ = where(n_rows, channels, BLOCK_E)
    n = tl.arange(0, BLOCK_N)
    A2 = load_tile(A, row % n_routes, n, e, channels, N) * LOG2E
    state = load_tile(start, row, n, e, channels, N)
    for i in range(n_parts):
        part = n_parts - 1 - i if REVERSE else i
        slot = part * n_rows + row
        store_tile(entry, slot, state, n, e, channels, N)
        total = load_vector(sum_dt, slot, e, channels)
        state = tl.exp2(total[None, :] * A2) * state + load_tile(end, slot, n, e, channels, N)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def merge_routes(
    y: T,
    z: T,
    out: T,
    ungated: T,
    scale: T,
    per_batch: T,
    count: T,
    n_routes: T,
    BLOCK: tl.constexpr,
) -> None:
    """Write out = ungated silu(z), where ungated = scale times the sum of y (B, K, L, E) over its routes."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < count
    y += i // per_batch * n_routes * per_batch + i % per_batch
    total = tl.load(y, mask=inside, other=0.0).to(tl.float32)
    for _ in range(1, n_routes):
        y += per_batch
        total += tl.load(y, mask=inside, other=0.0).to(tl.float32)
    total *= scale
    if ungated is not None:
        tl.store(ungated + i, total, mask=inside)
    if z is not None:
        gate = tl.load(z + i, mask=inside, other=0.0).to(tl.float32)
        total *= gate * sigmoid(gate)
    tl.store(out + i, total, mask=inside)
