"""Routes as GPU kernels read them: one table of positions on the device for each set of routes and grid."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.routes import Grid, route_index

__all__ = ["RouteTable", "route_table"]


class RouteTable(NamedTuple):
    """Routes on a device.

    Attributes:
        route: (K, M) int32 positions in visiting order; what follows a shorter route's end is 0.
        lengths: (K,) int32 steps of each route.
        steps: M, of the longest route.
        covers: whether every route visits every position.
    """

    route: Tensor
    lengths: Tensor
    steps: int
    covers: bool


@lru_cache(maxsize=256)
def route_table(routes: tuple[str, ...], grid: Grid, device: torch.device) -> RouteTable:
    """The table of `routes` on `grid`; kept, because making it takes longer than a scan."""
    walks = [torch.from_numpy(route_index(name, grid).copy()) for name in routes]
    lengths = [len(walk) for walk in walks]
    route = torch.zeros(len(routes), max(lengths), dtype=torch.int32)
    for row, walk in zip(route, walks, strict=True):
        row[: len(walk)] = walk
    positions = 1
    for size in grid:
        positions *= size
    covers = min(lengths) == positions
    return RouteTable(route.to(device), torch.tensor(lengths, dtype=torch.int32).to(device), max(lengths), covers)
