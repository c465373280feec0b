"""GEMMs with weights of their own for every direction, on (B, K, L, C) tensors of any strides.

Where a direction's rows of all sequences follow each other in memory, as in (K, B, L, C), one batched GEMM serves all
directions; else each direction takes one that is batched over sequences. Nothing is copied.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["add_times_each", "outer", "outer_each", "times_each"]

# A weight's gradient is a small matrix summed over all tokens: too few tiles to fill a GPU unless the sum is cut.
MAX_PARTS = 64
PART = 1024
# Where no divisor cuts the tokens into shorter parts, a single product per direction leaves the cut to the library.
LONGEST_PART = 16384


def _merged(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor] | None:
    """Both as (K, B L, C), or None where one is laid out otherwise."""
    if a.shape[0] != 1:
        length = a.shape[2]
        if a.stride(0) != length * a.stride(2) or b.stride(0) != length * b.stride(2):
            return None
    return a.transpose(0, 1).flatten(1, 2), b.transpose(0, 1).flatten(1, 2)


def times_each(x: Tensor, weight: Tensor, out: Tensor) -> None:
    """Write x W to `out`: (B, K, L, m), (K, m, n) and (B, K, L, n)."""
    merged = _merged(x, out)
    if merged is not None:
        torch.bmm(merged[0], weight, out=merged[1])
        return
    for k in range(x.shape[1]):
        torch.bmm(x[:, k], weight[k].expand(x.shape[0], -1, -1), out=out[:, k])


def add_times_each(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add x W to `total`; shapes as in `times_each`."""
    merged = _merged(total, x)
    if merged is not None:
        merged[0].baddbmm_(merged[1], weight)
        return
    for k in range(x.shape[1]):
        total[:, k].baddbmm_(x[:, k], weight[k].expand(x.shape[0], -1, -1))


def _transposed_times(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a^T b of batches of matrices, not rounded on the way to `dtype` where CUDA can leave that out."""
    if a.is_cuda and a.dtype != dtype == torch.float32:
        return torch.bmm(a.transpose(1, 2), b, out_dtype=dtype)
    return torch.bmm(a.transpose(1, 2), b).to(dtype)


def outer(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a^T b in a weight's dtype: (T, m) and (T, n) -> (m, n)."""
    if a.is_cuda and a.dtype != dtype == torch.float32:
        return torch.mm(a.t(), b, out_dtype=dtype)
    return torch.mm(a.t(), b).to(dtype)


@lru_cache(maxsize=256)
def _parts(tokens: int) -> int:
    """Into how many equal parts a sum over tokens is cut."""
    most = min(max(tokens // PART, 1), MAX_PARTS)
    return next(n for n in range(most, 0, -1) if tokens % n == 0)


def outer_each(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a^T b over all tokens for every direction, in a weight's dtype: (B, K, L, m) and (B, K, L, n) -> (K, m, n)."""
    routes = a.shape[1]
    if a.numel() == 0:
        return a.new_zeros(routes, a.shape[-1], b.shape[-1], dtype=dtype)
    merged = _merged(a, b)
    if merged is None:
        return torch.stack([_transposed_times(a[:, k], b[:, k], dtype).sum(0) for k in range(routes)])
    a, b = merged
    parts = _parts(a.shape[1])
    if a.shape[1] > LONGEST_PART * parts:
        return torch.stack([outer(a[k], b[k], dtype) for k in range(routes)])
    if parts == 1:
        return _transposed_times(a, b, dtype)
    a, b = (t.unflatten(1, (parts, -1)).flatten(0, 1) for t in merged)
    products: Tensor = _transposed_times(a, b, dtype).unflatten(0, (routes, parts))
    return products.sum(1)
