"""The projected scan's inputs as every backend gets them, and what a backend is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from ssmvision.kernels import registry

__all__ = ["Grads", "ProjectedArgs", "ProjectedRequest", "unpack"]


class ProjectedArgs(NamedTuple):
    """The op's inputs with the grid flattened to L positions.

    Shapes: x (B, L, E) shared or (B, K, L, E); projected (B, L, K, R + 2 N), at each position and route R numbers of
    the step size, then B, then C; dt_weight (K, E, R); A (K, E, N); D, delta_bias (K, E).
    """

    x: Tensor
    projected: Tensor
    dt_weight: Tensor
    A: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    routes: tuple[str, ...]
    grid: tuple[int, ...]
    merge: str


# Gradients of the first six fields of ProjectedArgs, in their dtypes and shapes; None where there is no input.
Grads = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class ProjectedRequest(registry.Request):
    """What a call asks of a backend.

    Attributes:
        routes, grid: route names and spatial size.
        channels, rank, states: E, R and N.
        shared: whether all routes walk the same x.
        merge: as the op's.
    """

    routes: tuple[str, ...] = ("forward",)
    grid: tuple[int, ...] = (1,)
    channels: int = 16
    rank: int = 1
    states: int = 1
    shared: bool = True
    merge: str = "sum"


def unpack(projected: Tensor, rank: int, states: int) -> tuple[Tensor, Tensor, Tensor]:
    """(B, L, K, R + 2 N) -> low (B, K, L, R), B and C (B, K, L, N), as views."""
    low, B, C = projected.transpose(1, 2).split([rank, states, states], -1)
    return low, B, C
