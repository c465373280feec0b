"""Matrix products in the precision that their device is fast in, with results to add up in single precision."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["product", "product_dtype", "scaled"]


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of tensors made from x are computed in: bfloat16 for a bfloat16 CUDA tensor, else at least float32.

    Not float16: sums over many positions leave its range.
    """
    if x.is_cuda and x.dtype == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(x.dtype, torch.float32)


def product(dtype: torch.dtype, equation: str, a: Tensor, b: Tensor) -> Tensor:
    """`torch.einsum` of two tensors, computed in `dtype` and returned in a's."""
    wide = a.dtype
    return torch.einsum(equation, a.to(dtype), b.to(dtype)).to(wide)


def scaled(x: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """Product of two tensors, broadcast: computed in the wider of their dtypes, rounded once to `dtype`; in one pass.

    Without gradients.
    """
    shape = torch.broadcast_shapes(x.shape, by.shape)
    return torch.mul(x, by, out=torch.empty(shape, dtype=dtype, device=x.device))
