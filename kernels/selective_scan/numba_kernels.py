"""The Numba backend's compiled loops: one call walks some tasks, a task being 16 channels of one route of one image.

Arrays are flat, float32 but for `index` and `lengths` (int64); E is a multiple of 16. Inputs with an axis of positions
come with their strides (image, route, position), in which a shared one has 0; all others are contiguous. `sizes` is
(saved states, B, K, L, E, N). Nothing here takes Python's lock, so that threads run side by side; what a task does
depends on neither their number nor other tasks, and so neither do the results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ssmvision.kernels.cpu.team import team
from ssmvision.kernels.cpu.vectors import (
    LANES,
    LN2,
    OPTIONS,
    exp2,
    fma,
    load,
    sigmoid,
    softplus,
    splat,
    store,
    total,
)

__all__ = ["scan_backward", "scan_backward_team", "scan_forward", "scan_forward_team"]

ZERO, SCALE = np.float32(0.0), np.float32(LN2)


@njit(inline="always", **OPTIONS)
def copy_states(target: Any, to: int, to_stride: int, source: Any, at: int, at_stride: int, n_state: int) -> None:
    """A task's state: a vector for each of the N."""
    for n in range(n_state):
        store(target, to + n * to_stride, load(source, at + n * at_stride))


@njit(inline="always", **OPTIONS)
def step_size(delta: Any, at: int, offset: Any, with_softplus: bool) -> Any:
    """Step sizes of 16 channels at one position."""
    dt = load(delta, at) + offset
    if with_softplus:
        dt = softplus(dt)
    return dt


@njit(inline="always", **OPTIONS)
def place(task: int, sizes: Any, strides: Any) -> Any:
    """A task's image and route as one number, route, first channel and, in each of x, delta, B and C, its beginning."""
    _, _, routes, _, channels, _ = sizes
    of_x, of_delta, of_B, of_C = strides
    row, start = task // (channels // LANES), task % (channels // LANES) * LANES
    b, k = row // routes, row % routes
    x0, delta0 = b * of_x[0] + k * of_x[1] + start, b * of_delta[0] + k * of_delta[1] + start
    return row, k, start, x0, delta0, b * of_B[0] + k * of_B[1], b * of_C[0] + k * of_C[1]


@njit(**OPTIONS)
def scan_forward(
    first: int,
    last: int,
    sizes: Any,
    strides: Any,
    x: Any,
    delta: Any,
    B: Any,
    C: Any,
    A2: Any,
    D: Any,
    bias: Any,
    index: Any,
    lengths: Any,
    with_softplus: bool,
    chunk: int,
    y: Any,
    states: Any,
    saved: Any,
) -> None:
    """Tasks [first, last) of a forward.

    Args:
        first, last: tasks; (image, route, channels / 16), the last one fastest.
        sizes: see the module.
        strides: of x, delta, B and C.
        x, delta: (B, K, L, E).
        B, C: (B, K, L, N).
        A2: (K, N, E) decay rates times log2(e).
        D, bias: (K, E), zeros where there are none.
        index: (K, L) positions in scan order.
        lengths: (K,) how many of them the route visits.
        with_softplus: of delta + bias.
        chunk: steps between saved states.
        y: (B, K, L, E), written where the route passes.
        states: (B, K, N, E), the last ones.
        saved: (saved states, B, K, N, E), written at the entry of a route's chunks and, last, at its end.
    """
    n_saved, batch, routes, positions, channels, n_state = sizes
    state_size = batch * routes * n_state * channels
    of_x, of_delta, of_B, of_C = strides
    h, A = np.zeros(n_state * LANES, np.float32), np.zeros(n_state * LANES, np.float32)
    for task in range(first, last):
        row, k, start, x0, delta0, B0, C0 = place(task, sizes, strides)
        own = row * n_state * channels + start
        h[:] = ZERO
        copy_states(A, 0, LANES, A2, k * n_state * channels + start, channels, n_state)
        skip, offset = load(D, k * channels + start), load(bias, k * channels + start)
        for step in range(lengths[k]):
            if n_saved and step % chunk == 0:
                copy_states(saved, step // chunk * state_size + own, channels, h, 0, LANES, n_state)
            at = index[k * positions + step]
            u, dt = load(x, x0 + at * of_x[2]), step_size(delta, delta0 + at * of_delta[2], offset, with_softplus)
            du, out = dt * u, skip * u
            for n in range(n_state):
                decay = exp2(dt * load(A, n * LANES))
                state = fma(decay, load(h, n * LANES), du * splat(B[B0 + at * of_B[2] + n]))
                store(h, n * LANES, state)
                out = fma(state, splat(C[C0 + at * of_C[2] + n]), out)
            store(y, (row * positions + at) * channels + start, out)
        copy_states(states, own, channels, h, 0, LANES, n_state)
        if n_saved:
            copy_states(saved, (n_saved - 1) * state_size + own, channels, h, 0, LANES, n_state)


@njit(inline="always", **OPTIONS)
def replay(
    h: Any,
    decays: Any,
    steps: Any,
    A: Any,
    x: Any,
    delta: Any,
    B: Any,
    index: Any,
    begin: int,
    count: int,
    firsts: Any,
    rows: Any,
    offset: Any,
    with_softplus: bool,
) -> None:
    """Step sizes, decays and states of a chunk again, from its entry state in h's first row.

    Args:
        h: (chunk + 1, N, 16).
        decays: (chunk, N, 16).
        steps: (chunk, 16).
        A: (N, 16) rates times log2(e).
        x, delta, B, index, with_softplus: see `scan_forward`.
        begin, count: the chunk's first place in `index`, and its steps.
        firsts, rows: where the task begins in x, delta and B, and their strides from position to position.
        offset: 16 biases.
    """
    wide = len(A)
    for i in range(count):
        at = index[begin + i]
        dt = step_size(delta, firsts[1] + at * rows[1], offset, with_softplus)
        du = dt * load(x, firsts[0] + at * rows[0])
        store(steps, i * LANES, dt)
        for lane in range(0, wide, LANES):
            decay = exp2(dt * load(A, lane))
            into = splat(B[firsts[2] + at * rows[2] + lane // LANES])
            store(decays, i * wide + lane, decay)
            store(h, (i + 1) * wide + lane, fma(decay, load(h, i * wide + lane), du * into))


@njit(**OPTIONS)
def scan_backward(
    first: int,
    last: int,
    sizes: Any,
    strides: Any,
    x: Any,
    delta: Any,
    B: Any,
    C: Any,
    A2: Any,
    D: Any,
    bias: Any,
    index: Any,
    lengths: Any,
    with_softplus: bool,
    chunk: int,
    saved: Any,
    dy: Any,
    of_dy: Any,
    dlast: Any,
    dx: Any,
    ddelta: Any,
    dB: Any,
    dC: Any,
    dA: Any,
    dD: Any,
    dbias: Any,
) -> None:
    """Tasks [first, last) of a backward, chunk by chunk from the end: g_t = C_t dy_t + decay_{t+1} g_{t+1}.

    Args:
        first, last, sizes, strides, x, delta, B, C, A2, D, bias: as the forward's.
        index, lengths, with_softplus, chunk: likewise.
        saved: what the forward left there.
        dy: (B, K, L, E) gradient of y.
        of_dy: its strides.
        dlast: (B, K, N, E) gradient of the last states.
        dx, ddelta: (B, K, L, E), written where the route passes.
        dB, dC: (E / 16, B, K, L, N), the share of each 16 channels, likewise.
        dA: (B, K, N, E), of A itself.
        dD, dbias: (B, K, E).
    """
    _, batch, routes, positions, channels, n_state = sizes
    blocks, wide, state_size = channels // LANES, n_state * LANES, batch * routes * n_state * channels
    of_x, of_delta, of_B, of_C = strides
    A, carry, sum_A = np.zeros(wide, np.float32), np.zeros(wide, np.float32), np.zeros(wide, np.float32)
    h, decays = np.zeros((chunk + 1) * wide, np.float32), np.zeros(chunk * wide, np.float32)
    steps = np.zeros(chunk * LANES, np.float32)
    for task in range(first, last):
        row, k, start, x0, delta0, B0, C0 = place(task, sizes, strides)
        own, dy0 = row * n_state * channels + start, row // routes * of_dy[0] + k * of_dy[1] + start
        share = task % blocks * (batch * routes * positions * n_state)
        sum_A[:] = ZERO
        copy_states(A, 0, LANES, A2, k * n_state * channels + start, channels, n_state)
        copy_states(carry, 0, LANES, dlast, own, channels, n_state)
        skip, offset = load(D, k * channels + start), load(bias, k * channels + start)
        sum_D, sum_bias = splat(ZERO), splat(ZERO)
        for piece in range((lengths[k] + chunk - 1) // chunk - 1, -1, -1):
            begin, count = k * positions + piece * chunk, min(chunk, lengths[k] - piece * chunk)
            copy_states(h, 0, LANES, saved, piece * state_size + own, channels, n_state)
            firsts, rows = (x0, delta0, B0), (of_x[2], of_delta[2], of_B[2])
            replay(h, decays, steps, A, x, delta, B, index, begin, count, firsts, rows, offset, with_softplus)
            for i in range(count - 1, -1, -1):
                at = index[begin + i]
                here, columns = (row * positions + at) * channels + start, share + (row * positions + at) * n_state
                g_out, u, dt = load(dy, dy0 + at * of_dy[2]), load(x, x0 + at * of_x[2]), load(steps, i * LANES)
                du, d_input, d_step = dt * u, splat(ZERO), splat(ZERO)
                for n in range(n_state):
                    lane, there = n * LANES, i * wide + n * LANES
                    g = fma(g_out, splat(C[C0 + at * of_C[2] + n]), load(carry, lane))
                    handed = g * load(decays, there)
                    store(carry, lane, handed)
                    through = handed * load(h, there)
                    d_input = fma(g, splat(B[B0 + at * of_B[2] + n]), d_input)
                    d_step = fma(through, load(A, lane), d_step)
                    store(sum_A, lane, fma(through, dt, load(sum_A, lane)))
                    dB[columns + n] = total(g * du)
                    dC[columns + n] = total(load(h, there + wide) * g_out)
                d_raw = fma(d_input, u, d_step * splat(SCALE))
                if with_softplus:
                    d_raw = d_raw * sigmoid(load(delta, delta0 + at * of_delta[2]) + offset)
                store(ddelta, here, d_raw)
                store(dx, here, fma(d_input, dt, g_out * skip))
                sum_D, sum_bias = fma(g_out, u, sum_D), sum_bias + d_raw
        copy_states(dA, own, channels, sum_A, 0, LANES, n_state)
        store(dD, row * channels + start, sum_D)
        store(dbias, row * channels + start, sum_bias)


@njit(**OPTIONS)
def scan_forward_team(threads: int, parts: int, tasks: int, *arguments: Any) -> int:
    """`scan_forward` on several threads; how many parts failed."""
    failed: int = team(scan_forward, threads, parts, tasks, arguments)
    return failed


@njit(**OPTIONS)
def scan_backward_team(threads: int, parts: int, tasks: int, *arguments: Any) -> int:
    """`scan_backward` on several threads; how many parts failed."""
    failed: int = team(scan_backward, threads, parts, tasks, arguments)
    return failed
