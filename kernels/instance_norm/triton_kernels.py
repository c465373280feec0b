"""Triton kernels of the instance norm; triton.py launches them. A row is a channel of a sample."""

# triton ships no types, so its decorators have none
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

from typing import TypeAlias

import triton
import triton.language as tl

__all__ = ["gradient", "gradient_sums", "moments", "normalise"]

# What a kernel is given or computes: a pointer, a number, or a block of either.
T: TypeAlias = tl.tensor


@triton.jit
def moments(
    x: T, part: T, P: T, chunk: T, SPLITS: tl.constexpr, BLOCK: tl.constexpr
) -> None:  # fmt: skip
    """Mean and squared deviation of a chunk of a row, by Welford's rule in every lane."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    n, mean, m2 = (tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32))
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, P), BLOCK):
        p = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * P + p, p < P, 0.0).to(tl.float32)
        n += tl.where(p < P, 1.0, 0.0)
        off = tl.where(p < P, v - mean, 0.0)
        mean += off / tl.maximum(n, 1.0)
        m2 += tl.where(p < P, off * (v - mean), 0.0)
    total = tl.maximum(tl.sum(n), 1.0)
    center = tl.sum(n * mean) / total
    at = part + (row * SPLITS + split) * 2
    tl.store(at, center)
    tl.store(at + 1, tl.sum(m2 + n * (mean - center) * (mean - center)))


@triton.jit
def normalise(
    x: T, weight: T, bias: T, part: T, y: T, stats: T, C: T, P: T, chunk: T, eps: T,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """A chunk of a row, from the moments of all of the row's chunks."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    k = tl.arange(0, SPLITS)
    n = tl.minimum(tl.maximum(P - k * chunk, 0), chunk).to(tl.float32)
    means, m2 = tl.load(part + (row * SPLITS + k) * 2), tl.load(part + (row * SPLITS + k) * 2 + 1)
    mean = tl.sum(n * means) / P
    rstd = 1 / tl.sqrt(tl.sum(m2 + n * (means - mean) * (means - mean)) / P + eps)
    if split == 0:
        tl.store(stats + row * 2, mean)
        tl.store(stats + row * 2 + 1, rstd)
    scale = rstd * tl.load(weight + row % C).to(tl.float32)
    shift = tl.load(bias + row % C).to(tl.float32)
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, P), BLOCK):
        p = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * P + p, p < P, 0.0).to(tl.float32)
        tl.store(y + row * P + p, ((v - mean) * scale + shift).to(y.dtype.element_ty), p < P)


@triton.jit
def gradient_sums(
    x: T, stats: T, dy: T, part: T, P: T, chunk: T, SPLITS: tl.constexpr, BLOCK: tl.constexpr
) -> None:  # fmt: skip
    """Sums over a chunk of a row: of the gradient, and of its product with the normalised values."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    mean, rstd = tl.load(stats + row * 2), tl.load(stats + row * 2 + 1)
    plain, along = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, P), BLOCK):
        p = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * P + p, p < P, 0.0).to(tl.float32)
        d = tl.load(dy + row * P + p, p < P, 0.0).to(tl.float32)
        plain += d
        along += d * (v - mean) * rstd
    at = part + (row * SPLITS + split) * 2
    tl.store(at, tl.sum(plain))
    tl.store(at + 1, tl.sum(along))


@triton.jit
def gradient(
    x: T, weight: T, stats: T, dy: T, part: T, dx: T, sums: T, C: T, P: T, chunk: T,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """The gradient of a chunk of a row, from the sums of all of its chunks, which are added up for the weights."""
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    mean, rstd = tl.load(stats + row * 2), tl.load(stats + row * 2 + 1)
    k = tl.arange(0, SPLITS)
    plain = tl.sum(tl.load(part + (row * SPLITS + k) * 2))
    along = tl.sum(tl.load(part + (row * SPLITS + k) * 2 + 1))
    if split == 0:
        tl.store(sums + row * 2, along)
        tl.store(sums + row * 2 + 1, plain)
    scale = rstd * tl.load(weight + row % C).to(tl.float32)
    plain, along = plain / P, along / P * rstd
    begin = split * chunk
    for start in range(begin, tl.minimum(begin + chunk, P), BLOCK):
        p = start + tl.arange(0, BLOCK)
        v = tl.load(x + row * P + p, p < P, 0.0).to(tl.float32)
        d = tl.load(dy + row * P + p, p < P, 0.0).to(tl.float32)
        tl.store(dx + row * P + p, (scale * (d - plain - (v - mean) * along)).to(dx.dtype.element_ty), p < P)
