"""How many multiply-accumulates a chunked SSD is, from shapes alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ssmvision.kernels.ssd.config import chunk_sizes

__all__ = ["forward_macs"]

Shape = Sequence[int]


def forward_macs(x: Shape, delta: Shape, A: Shape, B: Shape, *args: Any, **kwargs: Any) -> int:
    """Of a forward, for x (B, *grid, H, P), delta (B, K, *grid, H) and B (B, K, *grid, G, N).

    In a chunk the products C B^T of every group and their weighted sums of x, whole squares; between chunks the
    products that fill and read the states. Carrying the states is left out: it is smaller by the chunk's length.

    Source: Dao and Gu, arXiv 2405.21060, section 6.
    """
    heads, width = x[-2:]
    groups, states = B[-2:]
    count, length = chunk_sizes(prod(delta[2:-1]))
    steps = delta[0] * delta[1] * count * length
    return steps * (length * (groups * states + heads * width) + 2 * states * heads * width)
