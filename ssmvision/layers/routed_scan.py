"""Parameters and call of a selective scan along K routes, each with projections, A and D of its own."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.projected_scan import projected_scan_packed
from ssmvision.kernels.selective_scan.interface import Merge
from ssmvision.layers.mamba import inverse_softplus_dt

__all__ = ["RoutedScan", "SsmInit"]

SsmInit = Literal["mamba", "normal", "uniform"]


class RoutedScan(nn.Module):
    """Base of the layers that scan a map (B, *grid, E) along K routes.

    Attributes:
        x_proj_weight: (K, R + 2 N, E), from a position to low-rank step size, B and C.
        dt_projs_weight, dt_projs_bias: (K, E, R) and (K, E), from there to the step sizes.
        A_logs, Ds: (K E, N) and (K E,).
    """

    d_inner: int
    d_state: int
    dt_rank: int
    backend: str

    def add_scan_parameters(self, routes: int, **factory: Any) -> None:
        """Register the parameters of K routes, not yet filled; widths are read from the attributes above."""
        inner, width = self.d_inner, self.dt_rank + 2 * self.d_state
        self.x_proj_weight = nn.Parameter(torch.empty(routes, width, inner, **factory))
        self.dt_projs_weight = nn.Parameter(torch.empty(routes, inner, self.dt_rank, **factory))
        self.dt_projs_bias = nn.Parameter(torch.empty(routes, inner, **factory))
        self.A_logs = nn.Parameter(torch.empty(routes * inner, self.d_state, **factory))
        self.Ds = nn.Parameter(torch.empty(routes * inner, **factory))

    @torch.no_grad()
    def reset_ssm_parameters(self, init: SsmInit = "mamba") -> None:
        """Fresh state-space parameters.

        Args:
            init: of step sizes, A and D: "mamba" (log-uniform step sizes, A = -1 ... -N), "normal" (A_logs from the
                standard normal, step-size parameters from a tenth of it), or "uniform" (A = -1, step-size parameters
                from [0, 0.1)). D = 1 in all of them.
        """
        bound = self.d_inner**-0.5  # that of a linear layer
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        nn.init.ones_(self.Ds)
        if init == "mamba":
            rates = torch.arange(1, self.d_state + 1, dtype=torch.float32).log()
            self.A_logs.copy_(rates.expand_as(self.A_logs))
            nn.init.uniform_(self.dt_projs_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            biases = inverse_softplus_dt(self.dt_projs_bias.numel(), device=self.dt_projs_bias.device)
            self.dt_projs_bias.copy_(biases.view_as(self.dt_projs_bias))
            return
        if init == "normal":
            nn.init.normal_(self.A_logs)
        else:
            nn.init.zeros_(self.A_logs)
        for parameter in (self.dt_projs_weight, self.dt_projs_bias):
            if init == "normal":
                nn.init.normal_(parameter, std=0.1)
            else:
                nn.init.uniform_(parameter, 0.0, 0.1)

    def no_weight_decay(self) -> set[str]:
        """Parameters that Mamba's authors exclude from weight decay: A_logs, Ds and the step-size biases."""
        return {"A_logs", "Ds", "dt_projs_bias"}

    def scan_routes(self, u: Tensor, routes: tuple[str, ...], merge: Merge, first: int = 0) -> Tensor:
        """Scan u (B, *grid, E) with the parameters of the routes from `first` on; see `projected_scan_nd`."""
        own = slice(first, first + len(routes))
        # Projecting each position is the same before and after it is put in a route's order.
        projected = F.linear(u, self.x_proj_weight[own].flatten(0, 1)).unflatten(-1, (len(routes), -1))
        a_logs = self.A_logs.to(torch.promote_types(self.A_logs.dtype, torch.float32))
        every = len(self.x_proj_weight)
        return projected_scan_packed(
            u,
            projected,
            self.dt_projs_weight[own],
            -torch.exp(a_logs).unflatten(0, (every, -1))[own],
            self.Ds.unflatten(0, (every, -1))[own],
            self.dt_projs_bias[own],
            routes=routes,
            merge=merge,
            backend=self.backend,
        )
