"""Routes as what a graph can do without knowing the grid's size: an order of the axes, walked forwards or backwards."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import NamedTuple

import numpy as np

from ssmvision.kernels.routes import route_index

__all__ = ["AxisOrder", "axis_order"]

# Sizes that differ, so that no two orders visit a grid of them alike.
PROBE = (2, 3, 5)


class AxisOrder(NamedTuple):
    """Axes of the grid, slowest first, and whether the walk is reversed."""

    axes: tuple[int, ...]
    reverse: bool


@cache
def axis_order(route: str, spatial_dims: int) -> AxisOrder | None:
    """What order of the axes a route walks in; None where it leaves positions out."""
    grid = PROBE[:spatial_dims]
    walk, positions = route_index(route, grid), np.arange(np.prod(grid)).reshape(grid)
    for axes in permutations(range(spatial_dims)):
        nested = positions.transpose(axes).ravel()
        for reverse in (False, True):
            if np.array_equal(walk, nested[::-1] if reverse else nested):
                return AxisOrder(axes, reverse)
    return None
