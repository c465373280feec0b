"""Triton kernels of S4's convolution kernels; dplr_triton.py launches them. A program makes one kernel of one feature.

With v = left right of a pair (left_i, right_j) and f = 1 / (2 i s - c z), g the same of z's conjugate, the sum over the
modes is that of v f + conj(v) g; r00, r01, r10 and r11 are it for (B, C), (B, P*), (P, C) and (P, P*). See dplr.py.
"""

# triton ships no types, so its decorators have none
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

import math
from typing import TypeAlias

import triton
import triton.language as tl

__all__ = ["dplr_backward", "dplr_forward"]

# What a kernel is given or computes: a pointer, a number, or a block of either.
T: TypeAlias = tl.tensor
PI = tl.constexpr(math.pi)


@triton.jit
def _system(
    dt: T, A_real: T, A_imag: T, B: T, C: T, P: T, i: T, H: T, S: T, channels: T, N: T,
    STEPS: tl.constexpr, BLOCK_N: tl.constexpr,
) -> T:  # fmt: skip
    """Step, A, B, P and C of program i; modes that do not exist have B = P = C = 0."""
    n, h = tl.arange(0, BLOCK_N), i % H
    exists, batch = n < N, i // (channels * H)
    row = (batch * S + h % S) * N + n
    step = tl.load(dt + (batch * H + h) * STEPS + (n if STEPS > 1 else n * 0), exists, 1.0)
    a_re, a_im = tl.load(A_real + row, exists, -1.0), tl.load(A_imag + row, exists, 0.0)
    b_re, b_im = tl.load(B + 2 * row, exists, 0.0), tl.load(B + 2 * row + 1, exists, 0.0)
    p_re, p_im = tl.load(P + 2 * row, exists, 0.0), tl.load(P + 2 * row + 1, exists, 0.0)
    at = C + 2 * (i * N + n)
    return step, a_re, a_im, b_re, b_im, p_re, p_im, tl.load(at, exists, 0.0), tl.load(at + 1, exists, 0.0)


@triton.jit
def _nodes(k: T, nodes: T) -> T:
    """Cosine and sine of half the angle of a node; exactly 0 and 1 at the Nyquist node, which is the last."""
    k = tl.minimum(k, nodes // 2)
    angle = k.to(tl.float32) * (PI / nodes)
    return tl.where(2 * k == nodes, 0.0, tl.cos(angle)), tl.sin(angle)


@triton.jit
def _fractions(z_re: T, z_im: T, c: T, s: T) -> T:
    """Both fractions f and g, (nodes, modes)."""
    re = -c[:, None] * z_re[None, :]
    above, below = 2 * s[:, None] - c[:, None] * z_im[None, :], 2 * s[:, None] + c[:, None] * z_im[None, :]
    f_size, g_size = 1 / (re * re + above * above), 1 / (re * re + below * below)
    return re * f_size, -above * f_size, re * g_size, -below * g_size


@triton.jit
def _total(v_re: T, v_im: T, f_re: T, f_im: T, g_re: T, g_im: T) -> T:
    """Sum of v f + conj(v) g over the modes, (nodes,)."""
    re = tl.sum(v_re[None, :] * (f_re + g_re) + v_im[None, :] * (g_im - f_im), 1)
    return re, tl.sum(v_re[None, :] * (f_im + g_im) + v_im[None, :] * (f_re - g_re), 1)


@triton.jit
def _transform(k: T, taps: T, nodes: T) -> T:
    """What real and imaginary part of a node contribute to each tap, (nodes, taps)."""
    # Reduced as integers: the angle stays exact however long the kernel is.
    turns = (k[:, None] * (2 * taps[None, :] + 1)) % (2 * nodes)
    angle = turns.to(tl.float32) * (PI / nodes)
    weight = tl.where((k == 0) | (2 * k == nodes), 1.0, 2.0) / nodes
    weight = tl.where(k <= nodes // 2, weight, 0.0)
    return weight[:, None] * tl.cos(angle), -weight[:, None] * tl.sin(angle)


@triton.jit
def dplr_forward(
    dt: T, A_real: T, A_imag: T, B: T, C: T, P: T, out: T, H: T, S: T, channels: T, N: T, nodes: T, length: T,
    STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr,
) -> None:  # fmt: skip
    """Taps of one kernel."""
    i, taps = tl.program_id(0), tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    step, a_re, a_im, b_re, b_im, p_re, p_im, c_re, c_im = _system(
        dt, A_real, A_imag, B, C, P, i, H, S, channels, N, STEPS, BLOCK_N
    )
    z_re, z_im, b_re, b_im, l_re, l_im = step * a_re, step * a_im, step * b_re, step * b_im, step * p_re, step * p_im
    found = tl.zeros((BLOCK_L,), tl.float32)
    for first in range(0, nodes // 2 + 1, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        c, s = _nodes(k, nodes)
        f_re, f_im, g_re, g_im = _fractions(z_re, z_im, c, s)
        re00, im00 = _total(b_re * c_re - b_im * c_im, b_re * c_im + b_im * c_re, f_re, f_im, g_re, g_im)
        re10, im10 = _total(l_re * c_re - l_im * c_im, l_re * c_im + l_im * c_re, f_re, f_im, g_re, g_im)
        re01, im01 = _total(b_re * p_re + b_im * p_im, b_im * p_re - b_re * p_im, f_re, f_im, g_re, g_im)
        re11, im11 = _total(l_re * p_re + l_im * p_im, l_im * p_re - l_re * p_im, f_re, f_im, g_re, g_im)
        d_re, d_im = 1 + c * re11, c * im11
        size = c / (d_re * d_re + d_im * d_im)
        q_re, q_im = (re01 * re10 - im01 * im10) * size, (re01 * im10 + im01 * re10) * size
        on_re, on_im = _transform(k, taps, nodes)
        total_re, total_im = re00 - (q_re * d_re + q_im * d_im), im00 - (q_im * d_re - q_re * d_im)
        found += tl.sum(total_re[:, None] * on_re + total_im[:, None] * on_im, 0)
    tl.store(out + i * length + taps, found, taps < length)


@triton.jit
def _pull(d_re: T, d_im: T, c: T, f_re: T, f_im: T, g_re: T, g_im: T) -> T:
    """From the gradient D of a sum over modes: that of v, and W such that z gets conj(v) W."""
    re, im = d_re[:, None], d_im[:, None]
    v_re = tl.sum(re * (f_re + g_re) + im * (f_im + g_im), 0)
    v_im = tl.sum(im * (f_re - g_re) + re * (g_im - f_im), 0)
    ff_re, ff_im, gg_re, gg_im = f_re * f_re - f_im * f_im, 2 * f_re * f_im, g_re * g_re - g_im * g_im, 2 * g_re * g_im
    re, im = (c * d_re)[:, None], (c * d_im)[:, None]
    w_re = tl.sum(re * (ff_re + gg_re) + im * (ff_im + gg_im), 0)
    return v_re, v_im, w_re, tl.sum(im * (ff_re - gg_re) + re * (gg_im - ff_im), 0)


@triton.jit
def dplr_backward(
    dt: T, A_real: T, A_imag: T, B: T, C: T, P: T, dout: T, d_C: T, parts: T,
    H: T, S: T, channels: T, N: T, nodes: T, length: T,
    STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_L: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of C, and this kernel's part (7, N) of those of A, B, P (real and imaginary) and dt."""
    i, n = tl.program_id(0), tl.arange(0, BLOCK_N)
    step, a_re, a_im, b_re, b_im, p_re, p_im, c_re, c_im = _system(
        dt, A_real, A_imag, B, C, P, i, H, S, channels, N, STEPS, BLOCK_N
    )
    z_re, z_im = step * a_re, step * a_im
    v00_re, v00_im = b_re * c_re - b_im * c_im, b_re * c_im + b_im * c_re
    v10_re, v10_im = p_re * c_re - p_im * c_im, p_re * c_im + p_im * c_re
    v01_re, v01_im = b_re * p_re + b_im * p_im, b_im * p_re - b_re * p_im
    v11 = p_re * p_re + p_im * p_im
    zero = tl.zeros((BLOCK_N,), tl.float32)
    d00_re, d00_im, d10_re, d10_im, d01_re, d01_im, d11, t_re, t_im = (
        zero, zero, zero, zero, zero, zero, zero, zero, zero,
    )  # fmt: skip
    for first in range(0, nodes // 2 + 1, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        d_re, d_im = tl.zeros((BLOCK_K,), tl.float32), tl.zeros((BLOCK_K,), tl.float32)
        for start in range(0, length, BLOCK_L):
            taps = start + tl.arange(0, BLOCK_L)
            d = tl.load(dout + i * length + taps, taps < length, 0.0)[None, :]
            on_re, on_im = _transform(k, taps, nodes)
            d_re += tl.sum(d * on_re, 1)
            d_im += tl.sum(d * on_im, 1)
        c, s = _nodes(k, nodes)
        f_re, f_im, g_re, g_im = _fractions(z_re, z_im, c, s)
        re10, im10 = _total(step * v10_re, step * v10_im, f_re, f_im, g_re, g_im)
        re01, im01 = _total(step * v01_re, step * v01_im, f_re, f_im, g_re, g_im)
        re11, im11 = _total(step * v11, zero, f_re, f_im, g_re, g_im)
        u_re, u_im = 1 + c * re11, c * im11
        size = c / (u_re * u_re + u_im * u_im)
        u_re, u_im = u_re * size, -u_im * size
        # total = r00 - r01 r10 u with u = c / (1 + c r11): x = r01 u, y = r10 u, and u' = - u^2 in r11.
        x_re, x_im = re01 * u_re - im01 * u_im, re01 * u_im + im01 * u_re
        y_re, y_im = re10 * u_re - im10 * u_im, re10 * u_im + im10 * u_re
        xy_re, xy_im = x_re * y_re - x_im * y_im, x_re * y_im + x_im * y_re
        v_re, v_im, w_re, w_im = _pull(d_re, d_im, c, f_re, f_im, g_re, g_im)
        d00_re, d00_im = d00_re + v_re, d00_im + v_im
        t_re, t_im = t_re + v00_re * w_re + v00_im * w_im, t_im + v00_re * w_im - v00_im * w_re
        r_re, r_im = -(x_re * d_re + x_im * d_im), -(x_re * d_im - x_im * d_re)
        v_re, v_im, w_re, w_im = _pull(r_re, r_im, c, f_re, f_im, g_re, g_im)
        d10_re, d10_im = d10_re + v_re, d10_im + v_im
        t_re, t_im = t_re + v10_re * w_re + v10_im * w_im, t_im + v10_re * w_im - v10_im * w_re
        r_re, r_im = -(y_re * d_re + y_im * d_im), -(y_re * d_im - y_im * d_re)
        v_re, v_im, w_re, w_im = _pull(r_re, r_im, c, f_re, f_im, g_re, g_im)
        d01_re, d01_im = d01_re + v_re, d01_im + v_im
        t_re, t_im = t_re + v01_re * w_re + v01_im * w_im, t_im + v01_re * w_im - v01_im * w_re
        r_re, r_im = xy_re * d_re + xy_im * d_im, xy_re * d_im - xy_im * d_re
        v_re, v_im, w_re, w_im = _pull(r_re, r_im, c, f_re, f_im, g_re, g_im)
        d11 += v_re
        t_re, t_im = t_re + v11 * w_re, t_im + v11 * w_im
    exists, at = n < N, d_C + 2 * (i * N + n)
    tl.store(at, step * (b_re * d00_re + b_im * d00_im + p_re * d10_re + p_im * d10_im), exists)
    tl.store(at + 1, step * (b_re * d00_im - b_im * d00_re + p_re * d10_im - p_im * d10_re), exists)
    at = parts + i * 7 * N + n
    tl.store(at, step * step * t_re, exists)
    tl.store(at + N, step * step * t_im, exists)
    tl.store(at + 2 * N, step * (c_re * d00_re + c_im * d00_im + p_re * d01_re - p_im * d01_im), exists)
    tl.store(at + 3 * N, step * (c_re * d00_im - c_im * d00_re + p_re * d01_im + p_im * d01_re), exists)
    from_re, from_im = b_re * d01_re + b_im * d01_im, b_im * d01_re - b_re * d01_im
    tl.store(at + 4 * N, step * (c_re * d10_re + c_im * d10_im + from_re + 2 * p_re * d11), exists)
    tl.store(at + 5 * N, step * (c_re * d10_im - c_im * d10_re + from_im + 2 * p_im * d11), exists)
    d_step = v00_re * d00_re + v00_im * d00_im + v10_re * d10_re + v10_im * d10_im
    d_step += v01_re * d01_re + v01_im * d01_im + v11 * d11 + step * (a_re * t_re + a_im * t_im)
    tl.store(at + 6 * N, d_step, exists)
