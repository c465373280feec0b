"""What the scan's Triton kernels share: where a program works, and how a step is read.

A program owns BLOCK_E channels of one row (batch x route) and walks a part of the route's steps with its states
(BLOCK_N, BLOCK_E) in registers. With one warp a program, a lane holds all states of a channel, so sums over states need
no exchange. Pointers that are None belong to inputs or results that the call does not have.
"""

# triton ships no types, so its decorators have none
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

from typing import TypeAlias

import triton
import triton.language as tl

__all__ = [
    "LOG2E",
    "UNSPECIALIZED",
    "T",
    "load_position",
    "load_row",
    "load_tile",
    "load_vector",
    "sigmoid",
    "softplus",
    "step_size",
    "store_tile",
    "where",
]

LOG2E = tl.constexpr(1.4426950408889634)
# What a kernel is given or computes: a pointer, a number, or a block of either.
T: TypeAlias = tl.tensor
# Sizes that vary from call to call: a kernel for each of their divisibilities would be compiled again and again.
UNSPECIALIZED = (
    *("length", "channels", "n_routes", "n_rows", "n_parts", "max_steps", "part_steps", "first_row", "group_rows"),
    *("x_batch", "x_route", "g_batch", "g_route", "per_batch", "count"),
)


@triton.jit
def where(n_rows: T, channels: T, BLOCK_E: tl.constexpr) -> T:
    """The program's channels (BLOCK_E,), row (int64) and part."""
    tiles = tl.cdiv(channels, BLOCK_E)
    pid = tl.program_id(0)
    e = pid % tiles * BLOCK_E + tl.arange(0, BLOCK_E)
    return e, (pid // tiles % n_rows).to(tl.int64), pid // tiles // n_rows


@triton.jit
def load_row(pointer: T, at: T, lane: T, size: T) -> T:
    """A position's row (size,) of a (L, size) tensor, in float32; zero beyond the edge."""
    return tl.load(pointer + at * size + lane, mask=lane < size, other=0.0).to(tl.float32)


@triton.jit
def load_vector(pointer: T, k: T, e: T, channels: T) -> T:
    """Route k's row of a (K, E) tensor, in float32; zero for None."""
    value = (e * 0).to(tl.float32)
    if pointer is not None:
        value = load_row(pointer, k, e, channels)
    return value


@triton.jit
def load_tile(pointer: T, slot: T, n: T, e: T, channels: T, N: tl.constexpr) -> T:
    """Slot of a float32 (slots, N, E) tensor; zero for None and beyond the edges."""
    offset = n[:, None] * channels + e[None, :]
    value = (offset * 0).to(tl.float32)
    if pointer is not None:
        there = (n[:, None] < N) & (e[None, :] < channels)
        value = tl.load(pointer + slot * (N * channels) + offset, mask=there, other=0.0)
    return value


@triton.jit
def store_tile(
    pointer: T,
    slot: T,
    value: T,
    n: T,
    e: T,
    channels: T,
    N: tl.constexpr,
) -> None:
    """Write `load_tile`'s counterpart; nothing for None."""
    if pointer is not None:
        there = (n[:, None] < N) & (e[None, :] < channels)
        tl.store(pointer + slot * (N * channels) + n[:, None] * channels + e[None, :], value, mask=there)


@triton.jit
def load_position(route: T, step: T, first: T, stop: T) -> T:
    """The position of a step; of a step outside [first, stop), some position that exists."""
    return tl.load(route + step, mask=(step >= first) & (step < stop), other=0).to(tl.int64)


@triton.jit
def sigmoid(x: T) -> T:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def softplus(x: T) -> T:
    """log(1 + e^x), to the last digits for any x.

    With e = e^-|x| it is max(x, 0) + 2 artanh(e / (2 + e)), whose series ends soon, as its argument is at most 1 / 3; a
    GPU's logarithm would lose every digit of a small step.
    """
    e = tl.exp2(-tl.abs(x) * LOG2E)
    s = e / (2.0 + e)
    q = s * s
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q / 15))))))
    return tl.maximum(x, 0.0) + 2.0 * s * series


@triton.jit
def step_size(raw: T, SOFTPLUS: tl.constexpr) -> T:
    """Delta, from delta plus bias."""
    if SOFTPLUS:
        raw = softplus(raw)
    return raw
