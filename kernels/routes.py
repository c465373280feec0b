"""Scan routes: the orders in which a selective scan visits the positions of a 1D, 2D or 3D grid.

A route is a table entry: a function from the grid's size to the flat (C-order) positions it visits, in visiting order.
Routes may visit a subset of the grid (FusionMamba's skip grids); no route visits a position twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from itertools import permutations

import numpy as np

__all__ = ["ROUTES", "inverse_route", "route_index", "route_names"]

Grid = tuple[int, ...]
RouteFn = Callable[[Grid], np.ndarray]


def _positions(grid: Grid) -> np.ndarray:
    return np.arange(int(np.prod(grid, dtype=np.int64)), dtype=np.int64).reshape(grid)


def _axes(order: tuple[int, ...]) -> RouteFn:
    """Visit with the axes nested in `order`, the last one fastest."""
    return lambda grid: _positions(grid).transpose(order).ravel()


def _reverse(route: RouteFn) -> RouteFn:
    return lambda grid: route(grid)[::-1]


def _skip(row: int, column: int, order: tuple[int, int]) -> RouteFn:
    """Every second row and column, starting at (row, column): one of FusionMamba's four disjoint sub-grids."""
    return lambda grid: _positions(grid)[row::2, column::2].transpose(order).ravel()


def _axis_name(order: tuple[int, ...]) -> str:
    return "".join("dhw"[axis] for axis in order)


# name -> (number of spatial dimensions, or 0 for any; route)
ROUTES: dict[str, tuple[int, RouteFn]] = {
    # Any grid, flattened in C order (a 1D sequence included).
    "forward": (0, lambda grid: _positions(grid).ravel()),
    # 2D cross scan (VMamba): rows and columns.
    "row": (2, _axes((0, 1))),
    "column": (2, _axes((1, 0))),
    # 2D skip grids (EfficientVMamba, FusionMamba): step 2, alternating row- and column-major order.
    "skip_even_even": (2, _skip(0, 0, (0, 1))),
    "skip_odd_even": (2, _skip(1, 0, (1, 0))),
    "skip_even_odd": (2, _skip(0, 1, (0, 1))),
    "skip_odd_odd": (2, _skip(1, 1, (1, 0))),
    # 3D: the six nestings of depth, height and width; the last letter varies fastest.
    **{_axis_name(order): (3, _axes(order)) for order in permutations(range(3))},
    # SegMamba's inter-slice order: the same in-plane position through all slices of the first axis, then the next.
    "inter_slice": (3, _axes((1, 2, 0))),
}
ROUTES |= {"backward": (0, _reverse(ROUTES["forward"][1]))}
ROUTES |= {f"{name}_reverse": (dims, _reverse(fn)) for name, (dims, fn) in tuple(ROUTES.items()) if dims}


def route_names(spatial_dims: int) -> tuple[str, ...]:
    """Names of the routes defined on a grid of `spatial_dims` (1, 2 or 3) dimensions."""
    return tuple(name for name, (dims, _) in ROUTES.items() if dims in (0, spatial_dims))


@lru_cache(maxsize=256)
def route_index(name: str, grid: Grid) -> np.ndarray:
    """Flat positions a route visits, in order.

    Args:
        name: a key of `ROUTES`.
        grid: size of the grid, one entry per spatial dimension.

    Returns:
        int64 array (M,), read-only, each value in [0, prod(grid)), none twice.

    Raises:
        ValueError: the route is unknown or not defined for this number of dimensions.
    """
    if name not in ROUTES:
        raise ValueError(f"unknown route {name!r}; choose from {', '.join(ROUTES)}")
    dims, fn = ROUTES[name]
    if dims not in (0, len(grid)):
        raise ValueError(f"route {name!r} needs a {dims}D grid, got the {len(grid)}D grid {tuple(grid)}")
    # Copied, because numpy leaves the negative stride of a reversed route of one step, which torch refuses.
    index = np.array(fn(grid), order="C")
    index.setflags(write=False)
    return index


@lru_cache(maxsize=256)
def inverse_route(name: str, grid: Grid) -> np.ndarray:
    """For every flat position, the step at which the route visits it, or -1 if it never does; int64 (prod(grid),)."""
    index = route_index(name, grid)
    inverse = np.full(int(np.prod(grid, dtype=np.int64)), -1, dtype=np.int64)
    inverse[index] = np.arange(len(index))
    inverse.setflags(write=False)
    return inverse
