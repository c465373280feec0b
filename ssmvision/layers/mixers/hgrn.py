"""The gated recurrence of HGRN along several routes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.layers.gated_recurrence import gated_recurrence
from ssmvision.layers.mixers.routes import resolve_routes
from ssmvision.layers.norm import RMSNorm

__all__ = ["HGRN"]


class HGRN(nn.Module):
    """Hierarchically gated recurrence: h_t = f_t h_{t-1} + (1 - f_t) i_t, y = W (RMSNorm(h) silu(g)).

    Input i = silu(W_i x), forget gate f = b + (1 - b) sigmoid(W_f x) with a lower bound b that deeper layers set
    higher, so that they remember longer. All routes share the gates, and their states are averaged, as the paper does
    with its two directions. Real states, as in language models of that name; the paper also has complex ones.

    Source: Qin et al., "Hierarchically Gated Recurrent Neural Network for Sequence Modeling" (arXiv 2311.04823),
    section 3.

    Args:
        dim, spatial_dims: channels and axes of the map.
        expand: width of the state / `dim`.
        lower_bound: b of this layer, from 0 to below 1. The paper learns it from 0 in the first layer to near 1 in the
            last; the default is halfway.
        routes: names out of `ssmvision.ops.route_names(spatial_dims)`; None for every axis, both ways.
        backend: of the scan, see `selective_scan_nd`.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: a lower bound outside [0, 1), or routes that the grid does not have.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        expand: float = 1.0,
        lower_bound: float = 0.5,
        routes: Sequence[str] | None = None,
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= lower_bound < 1:
            raise ValueError(f"lower_bound={lower_bound}: a forget gate's bound is from 0 to below 1")
        self.lower_bound, self.backend = lower_bound, backend
        self.routes = resolve_routes(routes, spatial_dims)
        inner = int(expand * dim)
        self.in_proj = nn.Linear(dim, 3 * inner, bias=False, device=device, dtype=dtype)
        self.norm = RMSNorm(inner, eps=1e-5, device=device, dtype=dtype)
        self.out_proj = nn.Linear(inner, dim, bias=False, device=device, dtype=dtype)

    def _decay(self, forget: Tensor) -> Tensor:
        """-log f, at least float32: -log(b + (1 - b) sigmoid(forget))."""
        closed = -F.logsigmoid(forget.to(torch.promote_types(forget.dtype, torch.float32)))
        if self.lower_bound == 0:
            return closed
        return -torch.log1p((1 - self.lower_bound) * torch.expm1(-closed))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> (B, *grid, dim)."""
        candidate, forget, gate = self.in_proj(x).chunk(3, -1)
        state = gated_recurrence(
            F.silu(candidate), self._decay(forget), routes=self.routes, merge="mean", backend=self.backend
        )
        out: Tensor = self.out_proj(self.norm(state).to(gate.dtype) * F.silu(gate))
        return out
