"""How many multiply-accumulates a depthwise convolution of a map is, from shapes alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

__all__ = ["forward_macs"]


def forward_macs(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Of a forward, for x (B, H, W, C) and weight (C, k, k): one for each tap, padding included."""
    return prod(x) * prod(weight[1:])
