"""The selective scan (S6) along any routes of a map: VMamba's SS2D, in any number of axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.layers.depthwise import DepthwiseConv
from ssmvision.layers.mixers.routes import resolve_routes
from ssmvision.layers.norm import LayerNorm
from ssmvision.layers.routed_scan import RoutedScan

__all__ = ["S6"]


class S6(RoutedScan):
    """Projection, depthwise convolution, SiLU, selective scan along K routes, norm, gate, projection.

    Along each route h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t, y_t = C_t h_t + D x_t with delta, B and C made from
    x_t by projections of the route's own; the routes' results are summed: W (LayerNorm(y) silu(z)). On a plane with
    VMamba's four routes the same function as `SS2D`.

    Sources: Gu and Dao, "Mamba" (arXiv 2312.00752), eq. 2; Liu et al., "VMamba" (arXiv 2401.10166), figure 3.

    Args:
        dim, spatial_dims: channels and axes of the map.
        d_state: states per channel (N).
        expand: inner width / `dim`.
        dt_rank: rank of the step-size projection; "auto" is ceil(dim / 16).
        d_conv: odd side of the depthwise convolution.
        routes: names out of `ssmvision.ops.route_names(spatial_dims)`; None for every axis, both ways.
        backend: of the scan, see `projected_scan_nd`.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: routes that the grid does not have, or an even `d_conv`.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        d_state: int = 16,
        expand: float = 2.0,
        dt_rank: int | Literal["auto"] = "auto",
        d_conv: int = 3,
        routes: Sequence[str] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.d_state, self.d_inner = dim, d_state, int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else int(dt_rank)
        self.routes, self.backend = resolve_routes(routes, spatial_dims), backend
        self.in_proj = nn.Linear(dim, 2 * self.d_inner, bias=False, device=device, dtype=dtype)
        self.conv = DepthwiseConv(self.d_inner, spatial_dims, d_conv, "silu", device=device, dtype=dtype)
        self.add_scan_parameters(len(self.routes), device=device, dtype=dtype)
        self.out_norm = LayerNorm(self.d_inner, device=device, dtype=dtype)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, device=device, dtype=dtype)
        self.reset_ssm_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> (B, *grid, dim)."""
        u, z = self.in_proj(x).chunk(2, -1)
        u = self.conv(u)
        y = self.out_norm(self.scan_routes(u, self.routes, "sum")).to(u.dtype)
        out: Tensor = self.out_proj(y * F.silu(z))
        return out
