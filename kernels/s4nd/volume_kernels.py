"""Triton kernels of the 3D separable convolution: two axes a launch where the matrices of both fit beside a plane.

A program owns one channel, holds its Toeplitz matrices and walks that channel's planes (y, x), or column tiles of the z
axis. Operands are bfloat16, sums float32. No program adds to what another one wrote: sums over positions are left in a
slot a program and added in a fixed order.
"""

# triton ships no types, so its decorators have none
# mypy: disallow-untyped-decorators=False
from __future__ import annotations

from typing import TypeAlias

import triton
import triton.language as tl

__all__ = ["columns", "columns_backward", "diagonals", "planes", "planes_backward"]

# What a kernel is given or computes: a pointer, a number, or a block of either.
T: TypeAlias = tl.tensor
# Numbers that vary from call to call without any use for the compiler.
FREE = (
    *("center_z", "taps_z", "center_y", "taps_y", "center_x", "taps_x", "center", "taps"),
    *("features", "items", "depth", "ly", "lx", "area", "parts", "column_parts", "plane_parts"),
)


@triton.jit
def _matrix(kernel: T, center: T, taps: T, SIZE: tl.constexpr, TRANSPOSED: tl.constexpr) -> T:
    """Toeplitz matrix (SIZE, SIZE) with kernel[center + i - j] in row i and column j, or its transpose."""
    i = tl.arange(0, SIZE)
    at = center + (i[None, :] - i[:, None] if TRANSPOSED else i[:, None] - i[None, :])
    return tl.load(kernel + at, mask=(at >= 0) & (at < taps), other=0.0).to(tl.bfloat16)


@triton.jit
def _load(pointer: T, rows: T, columns: T, n_rows: T, n_columns: T, stride: T, FULL: tl.constexpr) -> T:
    """Tile of a matrix of so many rows and columns; zero beyond its edges, which `FULL` tiles do not reach."""
    at = pointer + rows[:, None] * stride + columns[None, :]
    if FULL:
        return tl.load(at)
    return tl.load(at, mask=(rows[:, None] < n_rows) & (columns[None, :] < n_columns), other=0.0)


@triton.jit
def _store(pointer: T, value: T, rows: T, columns: T, n_rows: T, n_columns: T, stride: T, FULL: tl.constexpr) -> None:
    """Counterpart of `_load`, in the pointer's dtype."""
    at = pointer + rows[:, None] * stride + columns[None, :]
    if FULL:
        tl.store(at, value.to(pointer.dtype.element_ty))
    else:
        inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
        tl.store(at, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _share(count: T, parts: T) -> T:
    """The program's channel, and the first and last + 1 of its share of `count` items."""
    pid = tl.program_id(0)
    size = tl.cdiv(count, parts)
    first = pid % parts * size
    return pid // parts, first, tl.minimum(first + size, count)


@triton.jit
def _plane(item: T, features: T, h: T, depth: T, area: T) -> T:
    """Where plane `item` of a channel's B x depth begins."""
    return ((item // depth * features + h) * depth + item % depth).to(tl.int64) * area


@triton.jit
def _tile(item: T, features: T, h: T, depth: T, area: T, tiles: T) -> T:
    """Where the image of tile `item` of a channel's B x tiles begins."""
    return (item // tiles * features + h).to(tl.int64) * depth * area


@triton.jit(do_not_specialize=FREE)
def planes(
    u: T, out: T, kernel_y: T, kernel_x: T, center_y: T, taps_y: T, center_x: T, taps_x: T,
    features: T, items: T, depth: T, ly: T, lx: T, parts: T,
    Y: tl.constexpr, X: tl.constexpr, FULL: tl.constexpr, WHOLE: tl.constexpr, STAGES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
) -> None:  # fmt: skip
    """Set out = T_y u T_x^T for every plane, or T_y^T u T_x for `TRANSPOSED`.

    u, out: (B, features, depth, ly, lx), and may be the same: a plane is written by whom read it. items: B x depth, the
    planes of a channel, which `parts` programs share; WHOLE: a power of two by which lx can be divided.
    """
    h, first, stop = _share(items, parts)
    rows, cols = tl.arange(0, Y), tl.arange(0, X)
    lx = lx // WHOLE * WHOLE  # the same number, and the compiler sees that rows begin at whole vectors
    if FULL:
        ly, lx = Y, X
    left = _matrix(kernel_y + h * taps_y, center_y, taps_y, Y, TRANSPOSED)
    right = _matrix(kernel_x + h * taps_x, center_x, taps_x, X, not TRANSPOSED)
    for item in tl.range(first, stop, num_stages=STAGES):
        at = _plane(item, features, h, depth, ly * lx)
        half = tl.dot(left, _load(u + at, rows, cols, ly, lx, lx, FULL)).to(tl.bfloat16)
        _store(out + at, tl.dot(half, right), rows, cols, ly, lx, lx, FULL)


@triton.jit(do_not_specialize=FREE)
def columns(
    x: T, u: T, out: T, kernel: T, weight: T, center: T, taps: T, features: T, items: T, depth: T, area: T, parts: T,
    Z: tl.constexpr, N: tl.constexpr, FULL: tl.constexpr, WHOLE: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Set out = T_z x along the depth, plus weight u where there is a weight.

    x, u, out: (B, features, depth, area), x and out may be the same; items: B x ceil(area / N), the tiles of a channel;
    WHOLE: a power of two by which the area can be divided. Others: `planes`.
    """
    h, first, stop = _share(items, parts)
    rows, lane = tl.arange(0, Z), tl.arange(0, N)
    area = area // WHOLE * WHOLE  # as in `planes`
    tiles = tl.cdiv(area, N)
    if FULL:
        depth = Z
    matrix = _matrix(kernel + h * taps, center, taps, Z, False)
    if weight is not None:
        skip = tl.load(weight + h).to(tl.float32)
    for item in tl.range(first, stop, num_stages=STAGES):
        cols = item % tiles * N + lane
        at = _tile(item, features, h, depth, area, tiles)
        y = tl.dot(matrix, _load(x + at, rows, cols, depth, area, area, FULL))
        if weight is not None:
            y += _load(u + at, rows, cols, depth, area, area, FULL).to(tl.float32) * skip
        _store(out + at, y, rows, cols, depth, area, area, FULL)


@triton.jit(do_not_specialize=FREE)
def planes_backward(
    dy: T, v: T, out: T, kernel_y: T, kernel_x: T, d_left: T, d_right: T,
    center_y: T, taps_y: T, center_x: T, taps_x: T,
    features: T, items: T, depth: T, ly: T, lx: T, parts: T,
    Y: tl.constexpr, X: tl.constexpr, FULL: tl.constexpr, WHOLE: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Set out = T_y^T dy T_x for every plane, and the matrices' gradients for y = T_y v T_x^T.

    v and out may be the same. d_left: (programs, Y, Y), the gradient of T_y; d_right: (programs, X, X), that of T_x,
    transposed. Others: `planes`.
    """
    h, first, stop = _share(items, parts)
    rows, cols = tl.arange(0, Y), tl.arange(0, X)
    lx = lx // WHOLE * WHOLE  # the same number, and the compiler sees that rows begin at whole vectors
    if FULL:
        ly, lx = Y, X
    left = _matrix(kernel_y + h * taps_y, center_y, taps_y, Y, True)
    right = _matrix(kernel_x + h * taps_x, center_x, taps_x, X, False)
    sum_left, sum_right = tl.zeros((Y, Y), tl.float32), tl.zeros((X, X), tl.float32)
    for item in tl.range(first, stop, num_stages=STAGES):
        at = _plane(item, features, h, depth, ly * lx)
        d_plane, plane = _load(dy + at, rows, cols, ly, lx, lx, FULL), _load(v + at, rows, cols, ly, lx, lx, FULL)
        half = tl.dot(left, d_plane).to(tl.bfloat16)
        sum_right = tl.dot(tl.trans(plane), half, sum_right)
        _store(out + at, tl.dot(half, right), rows, cols, ly, lx, lx, FULL)
        half = tl.dot(d_plane, right).to(tl.bfloat16)
        sum_left = tl.dot(half, tl.trans(plane), sum_left)
    pid = tl.program_id(0)
    _store(d_left + pid * Y * Y, sum_left, rows, rows, Y, Y, Y, True)
    _store(d_right + pid * X * X, sum_right, cols, cols, X, X, X, True)


@triton.jit(do_not_specialize=FREE)
def columns_backward(
    w: T, u: T, dy: T, out: T, kernel: T, weight: T, d_matrix: T, d_weight: T,
    center: T, taps: T, features: T, items: T, depth: T, area: T, parts: T,
    Z: tl.constexpr, N: tl.constexpr, FULL: tl.constexpr, WHOLE: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Set out = T_z^T w + weight dy, the gradient of T_z for y = T_z u, w being y's, and the sum of dy u.

    w and out may be the same. d_matrix: (programs, Z, Z); d_weight: (programs,), None like `weight` without a skip.
    Others: `columns`.
    """
    h, first, stop = _share(items, parts)
    rows, lane = tl.arange(0, Z), tl.arange(0, N)
    area = area // WHOLE * WHOLE  # as in `planes`
    tiles = tl.cdiv(area, N)
    if FULL:
        depth = Z
    matrix = _matrix(kernel + h * taps, center, taps, Z, True)
    total, products = tl.zeros((Z, Z), tl.float32), tl.zeros((Z, N), tl.float32)
    if weight is not None:
        skip = tl.load(weight + h).to(tl.float32)
    for item in tl.range(first, stop, num_stages=STAGES):
        cols = item % tiles * N + lane
        at = _tile(item, features, h, depth, area, tiles)
        d_column = _load(w + at, rows, cols, depth, area, area, FULL)
        column = _load(u + at, rows, cols, depth, area, area, FULL)
        dx = tl.dot(matrix, d_column)
        total = tl.dot(d_column, tl.trans(column.to(tl.bfloat16)), total)
        if weight is not None:
            d_out = _load(dy + at, rows, cols, depth, area, area, FULL).to(tl.float32)
            dx += d_out * skip
            products += d_out * column.to(tl.float32)
        _store(out + at, dx, rows, cols, depth, area, area, FULL)
    pid = tl.program_id(0)
    _store(d_matrix + pid * Z * Z, total, rows, rows, Z, Z, Z, True)
    if weight is not None:
        tl.store(d_weight + pid, tl.sum(tl.sum(products, 1), 0))


@triton.jit
def _diagonals(
    d_matrix: T, d_kernel: T, block: T, center: T, taps: T, parts: T,
    SIZE: tl.constexpr, LAGS: tl.constexpr, TRANSPOSED: tl.constexpr,
) -> None:  # fmt: skip
    """Sums over parts and along LAGS diagonals of a channel's d_matrix (parts, SIZE, SIZE)."""
    h, tap = tl.program_id(0), block * LAGS + tl.arange(0, LAGS)
    row = tl.arange(0, SIZE)
    lag = center - tap if TRANSPOSED else tap - center
    column = row[:, None] - lag[None, :]
    inside = (column >= 0) & (column < SIZE)
    at = d_matrix + h * parts * (SIZE * SIZE) + row[:, None] * SIZE + column
    total = tl.zeros((SIZE, LAGS), tl.float32)
    for part in range(0, parts):
        total += tl.load(at + part * (SIZE * SIZE), mask=inside, other=0.0)
    tl.store(d_kernel + h * taps + tap, tl.sum(total, 0), mask=tap < taps)


@triton.jit(do_not_specialize=FREE)
def diagonals(
    d_z: T, d_y: T, d_x: T, d_kernel_z: T, d_kernel_y: T, d_kernel_x: T,
    center_z: T, taps_z: T, center_y: T, taps_y: T, center_x: T, taps_x: T, column_parts: T, plane_parts: T,
    Z: tl.constexpr, Y: tl.constexpr, X: tl.constexpr, LAGS: tl.constexpr,
) -> None:  # fmt: skip
    """Gradients (H, taps) of the kernels of all axes from what the programs of each channel have left.

    d_z: (H, column_parts, Z, Z), see `columns_backward`; d_y, d_x: (H, plane_parts, Y, Y) and (H, plane_parts, X, X),
    see `planes_backward`. A program has LAGS of a channel's axis.
    """
    block = tl.program_id(1)
    blocks_z, blocks_y = tl.cdiv(taps_z, LAGS), tl.cdiv(taps_y, LAGS)
    if block < blocks_z:
        _diagonals(d_z, d_kernel_z, block, center_z, taps_z, column_parts, Z, LAGS, False)
    elif block < blocks_z + blocks_y:
        _diagonals(d_y, d_kernel_y, block - blocks_z, center_y, taps_y, plane_parts, Y, LAGS, False)
    else:
        _diagonals(d_x, d_kernel_x, block - blocks_z - blocks_y, center_x, taps_x, plane_parts, X, LAGS, True)
