"""How many multiply-accumulates a projected scan is, from shapes alone. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ssmvision.kernels.selective_scan.flops import scan_macs, visited

__all__ = ["forward_macs"]

Shape = Sequence[int]


def forward_macs(
    x: Shape,
    projected: Shape,
    dt_weight: Shape,
    A: Shape,
    D: Shape | None,
    delta_bias: Shape | None,
    routes: str,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Of a forward: the step sizes' projection at every position that a route visits, and the scan.

    For the operator's arguments: projected is (B, *grid, K, R + 2 N), dt_weight (K, E, R) and A (K, E, N).
    """
    batch, steps = projected[0], visited(routes, projected[1:-2])
    _, channels, rank = dt_weight
    return batch * steps * channels * rank + scan_macs(batch, steps, channels, A[2])
