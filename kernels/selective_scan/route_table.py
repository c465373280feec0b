"""Routes as GPU kernels read them: one table of positions on the device for each set of routes and grid."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmvision.kernels.routes import Grid, route_index

__all__ = ["RouteTable", "route_table"]


class RouteTable(NamedTuple):
    """Routes on a device.

    Attributes:
        route: (K, M) int32 positions in visiting order; M is a multiple of 4, and at least `PADDING` entries repeat
            the last position (0 for an empty route), so that kernels may read ahead.
        lengths: (K,) int32 steps of each route.
        steps: of the longest route.
        covers: whether every route visits every position.
        pairs: (K,) int32, routes 2 g and 2 g + 1 of which are each other's reverse; None where routes do not cover the
            grid in such pairs.
        mirror: (K,) int32, 1 for every second route of a pair; None with `pairs`.
    """

    route: Tensor
    lengths: Tensor
    steps: int
    covers: bool
    pairs: Tensor | None
    mirror: Tensor | None


PADDING = 32


def _reversed_pairs(walks: list[np.ndarray]) -> list[int]:
    """Indices of routes, each followed by its reverse; empty where one has none."""
    left, pairs = list(range(len(walks))), []
    while left:
        first = left.pop(0)
        partner = next((k for k in left if np.array_equal(walks[k], walks[first][::-1])), None)
        if partner is None:
            return []
        left.remove(partner)
        pairs += [first, partner]
    return pairs


# A volume of 128^3 with six routes takes 50 MB.
@lru_cache(maxsize=32)
def route_table(routes: tuple[str, ...], grid: Grid, device: torch.device) -> RouteTable:
    """The table of `routes` on `grid`; kept, because making it takes longer than a scan."""
    walks = [route_index(name, grid) for name in routes]
    lengths = [len(walk) for walk in walks]
    steps = max(lengths)
    table = np.zeros((len(routes), -(-(steps + PADDING) // 4) * 4), dtype=np.int32)
    for row, walk in zip(table, walks, strict=True):
        row[: len(walk)] = walk
        row[len(walk) :] = walk[-1] if len(walk) else 0
    positions = 1
    for size in grid:
        positions *= size
    covers = min(lengths) == positions
    order = _reversed_pairs(walks) if covers and positions else []
    mirror = [int(k in order[1::2]) for k in range(len(routes))]

    def on_device(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32).to(device)

    return RouteTable(
        torch.from_numpy(table).to(device),
        on_device(lengths),
        steps,
        covers,
        on_device(order) if order else None,
        on_device(mirror) if order else None,
    )
