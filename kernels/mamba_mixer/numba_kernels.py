"""The Numba inference's compiled loop: the scan of 16 channels with what lies between its neighbours, two GEMMs.

A block of positions is walked with four states at a time in registers; its step sizes, inputs and outputs stay in the
first-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ssmvision.kernels.cpu.team import team
from ssmvision.kernels.cpu.vectors import (
    LANES,
    LOG2E,
    OPTIONS,
    broadcast,
    columns,
    exp2,
    fma,
    load,
    sigmoid,
    softplus,
    splat,
    store,
)

__all__ = ["mixer_scan", "mixer_scan_team"]

ZERO, SCALE = np.float32(0.0), np.float32(LOG2E)
BLOCK = 32  # positions
TOGETHER = 4  # states


@njit(inline="always", **OPTIONS)
def steps_of(
    u: Any, at: int, x_dbl: Any, low: int, rank: int, W: Any, offset: Any, skip: Any, i: int, made: Any
) -> None:
    """A position's step size, input times step size, and input times D, to place i of the block's arrays."""
    raw = offset
    for r in range(rank):
        raw = fma(broadcast(x_dbl, low + r), load(W, r * LANES), raw)
    dt, v = softplus(raw), load(u, at)
    store(made[0], i * LANES, dt)
    store(made[1], i * LANES, dt * v)
    store(made[2], i * LANES, skip * v)


@njit(inline="always", **OPTIONS)
def four_states(n: int, h: Any, A: Any, made: Any, count: int, x_dbl: Any, B0: int, C0: int, move: int) -> None:
    """Walks a block with states n..n + 4 and adds what they give; B0, C0: its first position's, `move` to the next."""
    at = n * LANES
    h0, h1, h2, h3 = load(h, at), load(h, at + LANES), load(h, at + 2 * LANES), load(h, at + 3 * LANES)
    A0, A1, A2, A3 = load(A, at), load(A, at + LANES), load(A, at + 2 * LANES), load(A, at + 3 * LANES)
    for i in range(count):
        b, c = B0 + i * move + n, C0 + i * move + n
        dt, du = load(made[0], i * LANES), load(made[1], i * LANES)
        h0 = fma(exp2(dt * A0), h0, du * broadcast(x_dbl, b))
        h1 = fma(exp2(dt * A1), h1, du * broadcast(x_dbl, b + 1))
        h2 = fma(exp2(dt * A2), h2, du * broadcast(x_dbl, b + 2))
        h3 = fma(exp2(dt * A3), h3, du * broadcast(x_dbl, b + 3))
        y = fma(h0, broadcast(x_dbl, c), load(made[2], i * LANES))
        y = fma(h1, broadcast(x_dbl, c + 1), y)
        y = fma(h2, broadcast(x_dbl, c + 2), y)
        store(made[2], i * LANES, fma(h3, broadcast(x_dbl, c + 3), y))
    store(h, at, h0)
    store(h, at + LANES, h1)
    store(h, at + 2 * LANES, h2)
    store(h, at + 3 * LANES, h3)


@njit(inline="always", **OPTIONS)
def one_state(n: int, h: Any, A: Any, made: Any, count: int, x_dbl: Any, B0: int, C0: int, move: int) -> None:
    """`four_states` with state n alone."""
    state, rate = load(h, n * LANES), load(A, n * LANES)
    for i in range(count):
        dt, du = load(made[0], i * LANES), load(made[1], i * LANES)
        state = fma(exp2(dt * rate), state, du * broadcast(x_dbl, B0 + i * move + n))
        store(made[2], i * LANES, fma(state, broadcast(x_dbl, C0 + i * move + n), load(made[2], i * LANES)))
    store(h, n * LANES, state)


@njit(**OPTIONS)
def mixer_scan(
    first: int,
    last: int,
    sizes: Any,
    u: Any,
    x_dbl: Any,
    z: Any,
    of_z: Any,
    A_log: Any,
    D: Any,
    dt_weight: Any,
    dt_bias: Any,
    reverse: Any,
    scale: float,
    out: Any,
) -> None:
    """Step sizes, selective scan, sum over the directions and gate; tasks [first, last), each (image, channels / 16).

    Arrays are flat float32, contiguous but for z; parameters are tuples with one for each of the K directions.

    Args:
        first, last: tasks, channels fastest.
        sizes: (B, K, L, E, N, R): images, directions, positions, channels (whole vectors), states, rank of the step
            sizes.
        u: (K, B, L, E).
        x_dbl: (K, B, L, R + 2N), the step sizes' low rank, B and C.
        z: (B, L, E) with strides `of_z` (image, position).
        of_z: see `z`.
        A_log: K times (E, N).
        D, dt_bias: K times (E,).
        dt_weight: K times (E, R).
        reverse: (K,), which directions run from the end.
        scale: of the sum.
        out: (B, L, E).
    """
    batch, routes, positions, channels, n_state, rank = sizes
    blocks, wide, fours = channels // LANES, rank + 2 * n_state, n_state // TOGETHER * TOGETHER
    h, A = np.zeros(n_state * LANES, np.float32), np.zeros(n_state * LANES, np.float32)
    W, block = np.zeros(rank * LANES, np.float32), np.zeros(3 * BLOCK * LANES, np.float32)
    made = (block[: BLOCK * LANES], block[BLOCK * LANES : 2 * BLOCK * LANES], block[2 * BLOCK * LANES :])
    for task in range(first, last):
        b, start = task // blocks, task % blocks * LANES
        for k in range(routes):
            columns(A, A_log[k], start, n_state)
            for n in range(n_state):
                store(A, n * LANES, splat(-SCALE) * exp2(splat(SCALE) * load(A, n * LANES)))
            columns(W, dt_weight[k], start, rank)
            h[:] = ZERO
            offset, skip = load(dt_bias[k], start), load(D[k], start)
            origin, sign = (k * batch + b) * positions, 1
            if reverse[k]:
                origin, sign = origin + positions - 1, -1
            for begin in range(0, positions, BLOCK):
                count, row = min(BLOCK, positions - begin), origin + sign * begin
                for i in range(count):
                    at = row + sign * i
                    steps_of(u, at * channels + start, x_dbl, at * wide, rank, W, offset, skip, i, made)
                B0, C0 = row * wide + rank, row * wide + rank + n_state
                for n in range(0, fours, TOGETHER):
                    four_states(n, h, A, made, count, x_dbl, B0, C0, sign * wide)
                for n in range(fours, n_state):
                    one_state(n, h, A, made, count, x_dbl, B0, C0, sign * wide)
                for i in range(count):
                    t = row + sign * i - k * batch * positions
                    y = load(made[2], i * LANES)
                    if k:
                        y = y + load(out, t * channels + start)
                    if k == routes - 1:
                        gate = load(z, b * of_z[0] + (t - b * positions) * of_z[1] + start)
                        y = y * splat(scale) * (gate * sigmoid(gate))
                    store(out, t * channels + start, y)


@njit(**OPTIONS)
def mixer_scan_team(threads: int, parts: int, tasks: int, *arguments: Any) -> int:
    """`mixer_scan` on several threads; how many parts failed."""
    failed: int = team(mixer_scan, threads, parts, tasks, arguments)
    return failed
