"""How many multiply-accumulates a selective scan is, from shapes alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssmvision.kernels.routes import route_index

__all__ = ["forward_macs", "scan_macs", "visited"]

Shape = Sequence[int]


def visited(routes: str, grid: Shape) -> int:
    """Positions that the comma-separated routes visit on a grid, summed over the routes."""
    names = routes.split(",")
    if len(grid) == 1:  # a sequence has no route that skips, and may be too long to list
        return len(names) * grid[0]
    return sum(len(route_index(name, tuple(grid))) for name in names)


def scan_macs(batch: int, steps: int, channels: int, states: int) -> int:
    """Two for each step, channel and state: h = decay h + input and y = y + C h.

    Making decay and input of the step size is elementwise, as are softplus, skip and gate: none of them counts.

    Source: Gu and Dao, arXiv 2312.00752, equation 2.
    """
    return 2 * batch * steps * channels * states


def forward_macs(
    x: Shape,
    delta: Shape,
    A: Shape,
    B: Shape,
    C: Shape,
    D: Shape | None,
    z: Shape | None,
    delta_bias: Shape | None,
    delta_softplus: bool,
    routes: str,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Of a forward, for the operator's arguments: delta is (B, K, *grid, E) and A (K, E, N)."""
    return scan_macs(delta[0], visited(routes, delta[2:-1]), A[1], A[2])
