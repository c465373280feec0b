"""Mamba-2's mixer (SSD) along several routes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.ssd import ssd_nd
from ssmvision.layers.mixers.heads import HeadInputs, HeadMixer
from ssmvision.layers.mixers.routes import resolve_routes
from ssmvision.layers.norm import RMSNorm

__all__ = ["SSD"]


class SSD(HeadMixer):
    """State-space duality: a selective scan whose decay is one number a head and step.

    Along each route h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_t^T, y_t = C_t h_t + D x_t, with B, C, delta, A and D
    of its own; the routes' results are averaged, gated and normed: W RMSNorm(y silu(z)). Causal along each route.

    Source: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060), eq. 2 with a scalar A_t; section 7 for the layer.

    Args:
        dim, spatial_dims: channels and axes of the map.
        d_state: states of a channel (N).
        expand: inner width / `dim`.
        head_dim: channels of a head; None for the widest divisor of the inner width up to 64.
        n_groups: groups of heads with B and C of their own.
        d_conv: odd side of the depthwise convolution.
        routes: names out of `ssmvision.ops.route_names(spatial_dims)`; None for every axis, both ways.
        backend: of the scan, see `ssd_nd`.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: routes that the grid does not have, a head or group size that does not divide, an even `d_conv`.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        d_state: int = 64,
        expand: float = 2.0,
        head_dim: int | None = None,
        n_groups: int = 1,
        d_conv: int = 3,
        routes: Sequence[str] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        names = resolve_routes(routes, spatial_dims)
        super().__init__(
            dim, spatial_dims, len(names), d_state, expand, head_dim, n_groups, d_conv, device=device, dtype=dtype
        )
        self.routes, self.backend = names, backend
        self.norm = RMSNorm(self.d_inner, eps=1e-5, device=device, dtype=dtype)

    def mix(self, inputs: HeadInputs) -> Tensor:
        """(B, *grid, H, P), the mean over the routes."""
        return ssd_nd(*inputs, routes=self.routes, merge="mean", backend=self.backend)

    def gate(self, y: Tensor, z: Tensor) -> Tensor:
        """RMSNorm(y silu(z))."""
        normed: Tensor = self.norm(y * F.silu(z))
        return normed.to(y.dtype)
