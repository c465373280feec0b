"""Public selective-scan functions and their `torch.library` registration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ssmvision.kernels.routes import parse_routes
from ssmvision.kernels.selective_scan.reference import selective_scan_nd_reference

Merge = Literal["sum", "mean", "none"]

__all__ = ["selective_scan_nd"]


def selective_scan_nd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    routes: Sequence[str],
    merge: Merge = "sum",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    out, state = selective_scan_nd_reference(
        x, delta, A, B, C, D, z, delta_bias, delta_softplus, parse_routes(routes), merge
    )
    return (out, state) if return_last_state else out


def selective_scan(*a, **k):
    raise RuntimeError
