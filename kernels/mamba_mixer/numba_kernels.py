"""The Numba inference's compiled loop: the scan of 16 channels with what lies between its neighbours, two GEMMs.

Step sizes are made for a block of positions at a time: one by one, each would have to wait for a sum and a logarithm.
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
    blocks, wide = channels // LANES, rank + 2 * n_state
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
                for i in range(count):
                    t, low = row + sign * i - k * batch * positions, (row + sign * i) * wide + rank
                    dt, du, y = load(made[0], i * LANES), load(made[1], i * LANES), load(made[2], i * LANES)
                    for n in range(n_state):
                        decay, into = exp2(dt * load(A, n * LANES)), du * broadcast(x_dbl, low + n)
                        state = fma(decay, load(h, n * LANES), into)
                        store(h, n * LANES, state)
                        y = fma(state, broadcast(x_dbl, low + n_state + n), y)
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
