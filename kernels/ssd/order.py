"""Routes as index tensors: from a map to whole chunks of every route, and back."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmvision.kernels.routes import inverse_route, route_index
from ssmvision.kernels.ssd.config import chunk_sizes

__all__ = ["Order", "make_order"]


class Order(NamedTuple):
    """K routes over L positions, each padded to c chunks of Q steps.

    Attributes:
        positions: (K, c Q) the position of every step; 0 where a step is padding.
        steps: (K, L) where every position is in (K, c Q) flattened; 0 where a route does not visit it.
        padding: (K, c Q) true for padding, or None if there is none.
        skipped: (K, L) true for positions that a route does not visit, or None if there are none.
    """

    positions: Tensor
    steps: Tensor
    padding: Tensor | None
    skipped: Tensor | None

    def gather(self, t: Tensor, per_route: bool) -> Tensor:
        """(B, L, ...), or (B, K, L, ...) where each route has its own, -> (B, K, c Q, ...) in the routes' orders."""
        if not per_route:
            return t[:, self.positions]
        routes = torch.arange(len(self.positions), device=t.device).unsqueeze(1)
        return t[:, routes, self.positions]

    def without_padding(self, t: Tensor) -> Tensor:
        """Set the steps (B, K, c Q, ...) that are padding to zero."""
        return t if self.padding is None else t.masked_fill(_trailing(self.padding, t), 0)

    def scatter(self, t: Tensor) -> Tensor:
        """(B, K, c Q, ...) in the routes' orders -> (B, K, L, ...); zero where a route was not."""
        placed = t.flatten(1, 2)[:, self.steps]
        return placed if self.skipped is None else placed.masked_fill(_trailing(self.skipped, placed), 0)


def _trailing(mask: Tensor, t: Tensor) -> Tensor:
    return mask.view(*mask.shape, *(1,) * (t.dim() - 3))


@lru_cache(maxsize=64)
def make_order(routes: tuple[str, ...], grid: tuple[int, ...], device: torch.device) -> Order:
    """The index tensors of these routes on a grid."""
    visits = [route_index(name, grid) for name in routes]
    count, length = chunk_sizes(max(map(len, visits)))
    steps = count * length
    positions = np.full((len(routes), steps), -1, dtype=np.int64)
    for row, visited in zip(positions, visits, strict=True):
        row[: len(visited)] = visited
    inverse = np.stack([inverse_route(name, grid) for name in routes])
    flat = inverse + np.arange(len(routes))[:, None] * steps
    return Order(
        torch.from_numpy(np.maximum(positions, 0)).to(device),
        torch.from_numpy(np.where(inverse < 0, 0, flat)).to(device),
        torch.from_numpy(positions < 0).to(device) if (positions < 0).any() else None,
        torch.from_numpy(inverse < 0).to(device) if (inverse < 0).any() else None,
    )
