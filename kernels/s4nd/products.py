"""Batches of matrix products, arranged for the device at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["FEW", "matrix_gradient", "multiply", "multiply_back", "tf32_products"]

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


def multiply(matrices: Tensor, x: Tensor, out: Tensor | None = None) -> Tensor:
    """(G, I, J) times (B, G, M, J) -> (B, G, I, M), on a CPU into `out` if given."""
    batch, groups, columns, _ = x.shape
    if out is None and _folds(x):
        folded = torch.matmul(matrices, x.permute(1, 3, 0, 2).flatten(2))
        return folded.reshape(*folded.shape[:2], batch, columns).permute(2, 0, 1, 3)
    if x.device.type != "cpu":
        return torch.matmul(matrices, x.transpose(-1, -2))
    # A broadcast product would copy the matrices for every image.
    y = x.new_empty(batch, groups, matrices.shape[1], columns) if out is None else out
    for image, result in zip(x, y, strict=True):
        torch.bmm(matrices, image.transpose(-1, -2), out=result)
    return y


def multiply_back(matrices: Tensor, dout: Tensor, out: Tensor | None = None) -> Tensor:
    """Gradient of `multiply` in x: (G, I, J) and (B, G, I, M) -> (B, G, M, J), on a CPU into `out` if given."""
    batch, groups, _, columns = dout.shape
    if out is None and batch > 1 and columns < FEW:
        folded = torch.matmul(dout.permute(1, 0, 3, 2).flatten(1, 2), matrices)
        return folded.reshape(groups, batch, columns, -1).transpose(0, 1)
    if dout.device.type != "cpu":
        return torch.matmul(dout.transpose(-1, -2), matrices)
    dx = dout.new_empty(batch, groups, columns, matrices.shape[2]) if out is None else out
    for image, result in zip(dout, dx, strict=True):
        torch.bmm(image.transpose(-1, -2), matrices, out=result)
    return dx


def matrix_gradient(dout: Tensor, x: Tensor) -> Tensor:
    """Gradient of `multiply` in the matrices, at least float32: (B, G, I, M) and (B, G, M, J) -> (G, I, J)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if _folds(x):
        rows, columns = dout.permute(1, 2, 0, 3).flatten(2), x.permute(1, 0, 2, 3).flatten(1, 2)
        return torch.matmul(rows, columns).to(wide)
    if x.device.type != "cpu":
        return torch.matmul(dout, x).sum(0, dtype=wide)
    dout, x = dout.to(wide), x.to(wide)
    total = torch.bmm(dout[0], x[0])
    for d_image, image in zip(dout[1:], x[1:], strict=True):
        total.baddbmm_(d_image, image)
    return total
