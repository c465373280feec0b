"""Triton kernels of sums of exponentials; modes_triton.py launches them. A program makes one kernel of one feature."""

# triton ships no types, so its decorators have none
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

from typing import TypeAlias

import triton
import triton.language as tl

__all__ = ["modes_backward", "modes_forward"]

# What a kernel is given or computes: a pointer, a number, or a block of either.
T: TypeAlias = tl.tensor


@triton.jit
def _modes(re: T, im: T, i: T, H: T, channels: T, N: T, BLOCK_N: tl.constexpr) -> T:
    """Log of the modes of program i, (N,); those that do not exist decay."""
    n = tl.arange(0, BLOCK_N)
    at = ((i // (channels * H)) * H + i % H) * N + n
    return tl.load(re + at, n < N, -1.0), tl.load(im + at, n < N, 0.0)


@triton.jit
def _powers(log_re: T, log_im: T, taps: T) -> T:
    """Of e^{l z} real and imaginary part, (modes, taps)."""
    steps = taps.to(tl.float32)[None, :]
    size, angle = tl.exp(log_re[:, None] * steps), log_im[:, None] * steps
    return size * tl.cos(angle), size * tl.sin(angle)


@triton.jit
def modes_forward(
    log_re: T, log_im: T, weight_re: T, weight_im: T, out: T, H: T, channels: T, N: T, length: T,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
) -> None:  # fmt: skip
    """Taps of one kernel."""
    i, taps, n = tl.program_id(0), tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L), tl.arange(0, BLOCK_N)
    z_re, z_im = _modes(log_re, log_im, i, H, channels, N, BLOCK_N)
    w_re, w_im = tl.load(weight_re + i * N + n, n < N, 0.0), tl.load(weight_im + i * N + n, n < N, 0.0)
    # Growing modes overflow beyond the last tap.
    e_re, e_im = _powers(z_re, z_im, tl.minimum(taps, length - 1))
    found = tl.sum(w_re[:, None] * e_re - w_im[:, None] * e_im, 0)
    tl.store(out + i * length + taps, found, taps < length)


@triton.jit
def modes_backward(
    log_re: T, log_im: T, weight_re: T, weight_im: T, dout: T, d_weight_re: T, d_weight_im: T, parts: T,
    H: T, channels: T, N: T, length: T,
    BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of the weights, and this kernel's part (2, N) of those of the modes."""
    i, n = tl.program_id(0), tl.arange(0, BLOCK_N)
    z_re, z_im = _modes(log_re, log_im, i, H, channels, N, BLOCK_N)
    w_re, w_im = tl.load(weight_re + i * N + n, n < N, 0.0), tl.load(weight_im + i * N + n, n < N, 0.0)
    zero = tl.zeros((BLOCK_N,), tl.float32)
    sum_re, sum_im, first_re, first_im = zero, zero, zero, zero
    for start in range(0, length, BLOCK_L):
        taps = start + tl.arange(0, BLOCK_L)
        d = tl.load(dout + i * length + taps, taps < length, 0.0)[None, :]
        e_re, e_im = _powers(z_re, z_im, tl.minimum(taps, length - 1))
        sum_re += tl.sum(d * e_re, 1)
        sum_im += tl.sum(d * e_im, 1)
        d = d * taps.to(tl.float32)[None, :]
        first_re += tl.sum(d * e_re, 1)
        first_im += tl.sum(d * e_im, 1)
    tl.store(d_weight_re + i * N + n, sum_re, n < N)
    tl.store(d_weight_im + i * N + n, -sum_im, n < N)
    at = parts + i * 2 * N + n
    tl.store(at, w_re * first_re - w_im * first_im, n < N)
    tl.store(at + N, -(w_re * first_im + w_im * first_re), n < N)
