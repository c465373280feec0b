"""Triton kernels of the branch operators; triton.py launches them. A tile is (channels, positions) of one image."""

# triton ships no types, so its decorators have none
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

from typing import TypeAlias

import triton
import triton.language as tl

__all__ = ["norm_backward", "norm_forward", "sum_backward", "sum_forward"]

# What a kernel is given or computes: a pointer, a number, or a block of either.
T: TypeAlias = tl.tensor


@triton.jit
def _tile(image: T, c: T, p: T, C: T, P: T) -> T:
    """Where a tile is in (B, C, P) and in (B, P, C), and which of it exists."""
    start = image.to(tl.int64) * C * P
    exists = (c < C)[:, None] & (p < P)[None, :]
    return start + c[:, None] * P + p[None, :], start + p[None, :] * C + c[:, None], exists


@triton.jit
def _vector(pointer: T, c: T, C: T) -> T:
    return tl.load(pointer + c, c < C, 0.0).to(tl.float32)


@triton.jit
def norm_forward(
    x: T, weight: T, bias: T, y: T, mean: T, rstd: T, C: T, P: T, tiles: T, eps: T,
    LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
) -> None:  # fmt: skip
    """Layer norm over the channels of a tile."""
    image, c = tl.program_id(0) // tiles, tl.arange(0, BLOCK_C)
    p = tl.program_id(0) % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    first, last, exists = _tile(image, c, p, C, P)
    v = tl.load(x + first, exists, 0.0).to(tl.float32)
    center = tl.sum(v, 0) / C
    v = tl.where(exists, v - center[None, :], 0.0)
    scale = 1 / tl.sqrt(tl.sum(v * v, 0) / C + eps)
    out = v * scale[None, :] * _vector(weight, c, C)[:, None] + _vector(bias, c, C)[:, None]
    tl.store(y + (last if LAST else first), out.to(y.dtype.element_ty), exists)
    tl.store(mean + image * P + p, center, p < P)
    tl.store(rstd + image * P + p, scale, p < P)


@triton.jit
def norm_backward(
    x: T, weight: T, mean: T, rstd: T, dy: T, dx: T, parts: T, C: T, P: T, tiles: T, total: T,
    LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of a few tiles' x, and their part (2, C) of the sums for weight and bias."""
    c = tl.arange(0, BLOCK_C)
    w = _vector(weight, c, C)[:, None]
    # Summed over positions once, at the end: in the loop every sum would pass through shared memory.
    d_weight, d_bias = tl.zeros((BLOCK_C, BLOCK_P), tl.float32), tl.zeros((BLOCK_C, BLOCK_P), tl.float32)
    for tile in range(tl.program_id(0), total, tl.num_programs(0)):
        image, p = tile // tiles, tile % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
        first, last, exists = _tile(image, c, p, C, P)
        v = tl.load(x + first, exists, 0.0).to(tl.float32)
        g = tl.load(dy + (last if LAST else first), exists, 0.0).to(tl.float32)
        center, scale = tl.load(mean + image * P + p, p < P, 0.0), tl.load(rstd + image * P + p, p < P, 0.0)
        unit = tl.where(exists, (v - center[None, :]) * scale[None, :], 0.0)
        d_weight += g * unit
        d_bias += g
        g = g * w
        shift, along = tl.sum(g, 0) / C, tl.sum(g * unit, 0) / C
        d = scale[None, :] * (g - shift[None, :] - unit * along[None, :])
        tl.store(dx + first, d.to(dx.dtype.element_ty), exists)
    at = parts + tl.program_id(0) * 2 * C + c
    tl.store(at, tl.sum(d_weight, 1), c < C)
    tl.store(at + C, tl.sum(d_bias, 1), c < C)


@triton.jit
def sum_forward(
    x: T, branch: T, gamma: T, keep: T, total: T, copy: T, C: T, P: T, tiles_p: T, tiles: T,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
) -> None:  # fmt: skip
    """The sum of a tile, and its copy."""
    image, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    c = tile // tiles_p * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tile % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    first, last, exists = _tile(image, c, p, C, P)
    v = tl.load(branch + last, exists, 0.0).to(tl.float32)
    if gamma is not None:
        v = v * _vector(gamma, c, C)[:, None]
    if keep is not None:
        v = v * tl.load(keep + image)
    v += tl.load(x + first, exists, 0.0).to(tl.float32)
    tl.store(total + first, v.to(total.dtype.element_ty), exists)
    if copy is not None:
        tl.store(copy + first, v.to(copy.dtype.element_ty), exists)


@triton.jit
def sum_backward(
    branch: T, gamma: T, keep: T, d_total: T, d_copy: T, d_x: T, d_branch: T, parts: T,
    C: T, P: T, tiles_p: T, total: T,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients of a few tiles of the same channels, and their part of the sum for gamma."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d_gamma = tl.zeros((BLOCK_C,), tl.float32)
    for tile in range(tl.program_id(0), total, tl.num_programs(0)):
        image, p = tile // tiles_p, tile % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
        first, last, exists = _tile(image, c, p, C, P)
        d = tl.load(d_total + first, exists, 0.0).to(tl.float32)
        if d_copy is not None:
            d += tl.load(d_copy + first, exists, 0.0).to(tl.float32)
            tl.store(d_x + first, d.to(d_x.dtype.element_ty), exists)
        if keep is not None:
            d = d * tl.load(keep + image)
        if gamma is not None:
            d_gamma += tl.sum(d * tl.load(branch + last, exists, 0.0).to(tl.float32), 1)
            d = d * _vector(gamma, c, C)[:, None]
        tl.store(d_branch + last, d.to(d_branch.dtype.element_ty), exists)
    if gamma is not None:
        tl.store(parts + tl.program_id(0) * C + c, d_gamma, c < C)
