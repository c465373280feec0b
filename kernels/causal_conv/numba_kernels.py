"""The Numba backend's compiled loops: 16 channels of an image at a time, all taps from the first-level cache.

Arrays are flat float32; E is a multiple of 16. Inputs come with their strides (image, position) or (image, direction,
position), others are contiguous. `reverse` tells for each direction whether it looks ahead instead of back.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ssmvision.kernels.cpu.team import team
from ssmvision.kernels.cpu.vectors import LANES, OPTIONS, columns, fma, load, sigmoid, splat, store

__all__ = ["conv_backward", "conv_backward_team", "conv_forward", "conv_forward_team"]

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@njit(inline="always", **OPTIONS)
def reach(reverse: Any, k: int, tap: int, width: int) -> int:
    """Position that a tap reads, relative to the output's."""
    return width - 1 - tap if reverse[k] else tap - width + 1


@njit(inline="always", **OPTIONS)
def taps_at(
    x: Any, at: int, row: int, t: int, positions: int, weight: Any, pre: Any, reverse: Any, k: int, width: int
) -> Any:
    """Adds a position's taps to `pre`; `at` is where the image's channels begin, `row` the stride over positions."""
    for tap in range(width):
        source = t + reach(reverse, k, tap, width)
        if 0 <= source < positions:
            pre = fma(load(x, at + source * row), load(weight, tap * LANES), pre)
    return pre


@njit(**OPTIONS)
def conv_forward(
    first: int,
    last: int,
    sizes: Any,
    x: Any,
    of_x: Any,
    weight: Any,
    bias: Any,
    reverse: Any,
    silu: bool,
    out: Any,
    of_out: Any,
) -> None:
    """Tasks [first, last), each (image, direction, channels / 16), the last one fastest.

    Args:
        first, last: tasks.
        sizes: (B, K, L, E, W).
        x: (B, L, E), with strides `of_x`.
        of_x: see `x`.
        weight: (K, E, W).
        bias: (K, E).
        reverse: (K,).
        silu: whether to apply it.
        out: (B, K, L, E), with strides `of_out`.
        of_out: see `out`.
    """
    _, routes, positions, channels, width = sizes
    blocks = channels // LANES
    kernel, window = np.zeros(width * LANES, np.float32), np.zeros(width * LANES, np.float32)
    for task in range(first, last):
        row, start = task // blocks, task % blocks * LANES
        b, k = row // routes, row % routes
        columns(kernel, weight, k * channels + start, width)
        offset = load(bias, k * channels + start)
        x0, out0 = b * of_x[0] + start, b * of_out[0] + k * of_out[1] + start
        window[:] = ZERO  # the inputs behind this one, each read once from x
        for step in range(positions):
            t = positions - 1 - step if reverse[k] else step
            newest = load(x, x0 + t * of_x[1])
            pre = fma(newest, load(kernel, (width - 1) * LANES), offset)
            for tap in range(width - 1):
                seen = load(window, (tap + 1) * LANES)
                store(window, tap * LANES, seen)
                pre = fma(seen, load(kernel, tap * LANES), pre)
            store(window, (width - 1) * LANES, newest)
            if silu:
                pre = pre * sigmoid(pre)
            store(out, out0 + t * of_out[2], pre)


@njit(**OPTIONS)
def conv_backward(
    first: int,
    last: int,
    sizes: Any,
    x: Any,
    of_x: Any,
    weight: Any,
    bias: Any,
    reverse: Any,
    silu: bool,
    dout: Any,
    of_dout: Any,
    dx: Any,
    dweight: Any,
    dbias: Any,
) -> None:
    """Tasks [first, last), each (image, channels / 16), the last one fastest: the directions add up in their order.

    Args:
        first, last: tasks.
        sizes, x, of_x, weight, bias, reverse, silu: as the forward's.
        dout: (B, K, L, E), with strides `of_dout`.
        of_dout: see `dout`.
        dx: (B, L, E).
        dweight: (B, K, W, E), each image's share.
        dbias: (B, K, E), likewise.
    """
    _, routes, positions, channels, width = sizes
    blocks = channels // LANES
    kernel, sums = np.zeros(width * LANES, np.float32), np.zeros(width * LANES, np.float32)
    dpre = np.zeros(positions * LANES, np.float32)
    for task in range(first, last):
        b, start = task // blocks, task % blocks * LANES
        x0, dx0 = b * of_x[0] + start, b * positions * channels + start
        for k in range(routes):
            columns(kernel, weight, k * channels + start, width)
            offset, total = load(bias, k * channels + start), splat(ZERO)
            sums[:] = ZERO
            for t in range(positions):
                grad = load(dout, b * of_dout[0] + k * of_dout[1] + t * of_dout[2] + start)
                if silu:
                    pre = taps_at(x, x0, of_x[1], t, positions, kernel, offset, reverse, k, width)
                    gate = sigmoid(pre)
                    grad = grad * fma(gate * sigmoid(splat(-ONE) * pre), pre, gate)
                store(dpre, t * LANES, grad)
                total = total + grad
                for tap in range(width):
                    source = t + reach(reverse, k, tap, width)
                    if 0 <= source < positions:
                        store(sums, tap * LANES, fma(grad, load(x, x0 + source * of_x[1]), load(sums, tap * LANES)))
            for t in range(positions):
                grad = load(dx, dx0 + t * channels) if k else splat(ZERO)
                for tap in range(width):
                    reader = t - reach(reverse, k, tap, width)
                    if 0 <= reader < positions:
                        grad = fma(load(dpre, reader * LANES), load(kernel, tap * LANES), grad)
                store(dx, dx0 + t * channels, grad)
            for tap in range(width):
                store(dweight, ((b * routes + k) * width + tap) * channels + start, load(sums, tap * LANES))
            store(dbias, (b * routes + k) * channels + start, total)


@njit(**OPTIONS)
def conv_forward_team(threads: int, parts: int, tasks: int, *arguments: Any) -> int:
    """`conv_forward` on several threads; how many parts failed."""
    failed: int = team(conv_forward, threads, parts, tasks, arguments)
    return failed


@njit(**OPTIONS)
def conv_backward_team(threads: int, parts: int, tasks: int, *arguments: Any) -> int:
    """`conv_backward` on several threads; how many parts failed."""
    failed: int = team(conv_backward, threads, parts, tasks, arguments)
    return failed
