"""The precision that a device is fast in for matrix products, and rounding to it."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["product_dtype", "scaled"]


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of tensors made from x are computed in: bfloat16 for a bfloat16 CUDA tensor, else at least float32.

    Not float16: sums over many positions leave its range.
    """
    if x.is_cuda and x.dtype == torch.bfloat16:
        return torch.bfloat16
    return torch.promote_types(x.dtype, torch.float32)


def scaled(x: Tensor, by: Tensor, dtype: torch.dtype) -> Tensor:
    """Product of two tensors, broadcast: computed in the wider of their dtypes, rounded once to `dtype`; in one pass.

    Without gradients.
    """
    shape = torch.broadcast_shapes(x.shape, by.shape)
    return torch.mul(x, by, out=torch.empty(shape, dtype=dtype, device=x.device))
