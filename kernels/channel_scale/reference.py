"""The definition in plain PyTorch, on any device, and the gradients of every backend."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["backward", "forward"]


def forward(first: Tensor, second: Tensor | None, weights: Tensor) -> Tensor:
    """First w_0 + second w_1, both maps (B, L, C) and weights (B, 1 or 2, C), in first's dtype."""
    weights = weights.to(first.dtype)
    out = first * weights[:, 0:1]
    return out if second is None else torch.addcmul(out, second, weights[:, 1:2])


def backward(
    first: Tensor, second: Tensor | None, weights: Tensor, dout: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of `forward`, each contiguous in its tensor's dtype; of an absent map None."""
    maps = [first] if second is None else [first, second]
    grads = [(dout * weights[:, i : i + 1].to(dout.dtype)).contiguous() for i in range(len(maps))]
    wide = torch.promote_types(weights.dtype, torch.float32)
    sums = torch.stack([(dout * t).sum(1, dtype=wide) for t in maps], 1)
    return grads[0], None if second is None else grads[1], sums.to(weights.dtype)
