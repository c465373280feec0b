"""Batches of matrix products, arranged for the device at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["matrix_gradient", "multiply", "multiply_back", "tf32_products"]

# With fewer columns an image, the images of a batch are multiplied together.
FEW = 16


@contextmanager
def tf32_products(allowed: bool, device: torch.device) -> Iterator[None]:
    """float32 products by TF32 only where asked for, whatever the global switch says."""
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _folds(x: Tensor) -> bool:
    """Whether the batch joins the columns: single columns would make matrix-vector products."""
    return x.shape[0] > 1 and x.shape[2] < FEW


def multiply(matrices: Tensor, x: Tensor) -> Tensor:
    """(G, I, J) times (B, G, M, J) -> (B, G, I, M)."""
    batch, groups, columns, _ = x.shape
    if _folds(x):
        folded = torch.matmul(matrices, x.permute(1, 3, 0, 2).flatten(2))
        return folded.reshape(*folded.shape[:2], batch, columns).permute(2, 0, 1, 3)
    if x.device.type != "cpu" or batch == 1:
        return torch.matmul(matrices, x.transpose(-1, -2))
    # A broadcast product would copy the matrices for every image.
    out = x.new_empty(batch, groups, matrices.shape[1], columns)
    for image, result in zip(x, out, strict=True):
        torch.matmul(matrices, image.transpose(-1, -2), out=result)
    return out


def multiply_back(matrices: Tensor, dout: Tensor) -> Tensor:
    """Gradient of `multiply` in x: (G, I, J) and (B, G, I, M) -> (B, G, M, J)."""
    batch, groups, _, columns = dout.shape
    if batch > 1 and columns < FEW:
        folded = torch.matmul(dout.permute(1, 0, 3, 2).flatten(1, 2), matrices)
        return folded.reshape(groups, batch, columns, -1).transpose(0, 1)
    if dout.device.type != "cpu" or batch == 1:
        return torch.matmul(dout.transpose(-1, -2), matrices)
    dx = dout.new_empty(batch, groups, columns, matrices.shape[2])
    for image, result in zip(dout, dx, strict=True):
        torch.matmul(image.transpose(-1, -2), matrices, out=result)
    return dx


def matrix_gradient(dout: Tensor, x: Tensor) -> Tensor:
    """Gradient of `multiply` in the matrices, at least float32: (B, G, I, M) and (B, G, M, J) -> (G, I, J)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if _folds(x):
        rows, columns = dout.permute(1, 2, 0, 3).flatten(2), x.permute(1, 0, 2, 3).flatten(1, 2)
        return torch.matmul(rows, columns).to(wide)
    if x.device.type != "cpu":
        return torch.matmul(dout, x).sum(0, dtype=wide)
    total = dout.new_zeros(*dout.shape[1:3], x.shape[-1], dtype=wide)
    for d_image, image in zip(dout.to(wide), x.to(wide), strict=True):
        total.baddbmm_(d_image, image)
    return total
