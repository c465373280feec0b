"""Flat views of tensors for compiled loops, which address elements by strides."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

__all__ = ["LANES", "filled", "flat", "whole_vectors"]

LANES = 16  # of a vector, see `vectors`, which cannot be imported without numba


def whole_vectors(channels: int) -> int:
    """The next multiple of a vector's width."""
    return -(-channels // LANES) * LANES


def filled(t: Tensor, channels: int) -> Tensor:
    """In float32, neighbours along the last axis next to each other, zeros after its last channel.

    Only what has to is copied; an expanded axis stays one.
    """
    t = F.pad(t.detach().float(), (0, channels - t.shape[-1])) if t.shape[-1] != channels else t.detach().float()
    return t if t.stride(-1) == 1 or channels <= 1 else t.contiguous()


def flat(t: Tensor) -> tuple[Any, tuple[int, ...]]:
    """A one-dimensional numpy view from the tensor's first element to its last, and the strides in elements."""
    strides: tuple[int, ...] = t.stride()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, strides, strict=True)) if t.numel() else 0
    return t.as_strided((extent,), (1,)).numpy(), strides
