"""Selective scan of the four sub-grids of every second row and column (ESS2D), for one map and for a pair of maps.

Sources: Pei et al., "EfficientVMamba" (arXiv 2403.09977), for the sub-grids; Xie et al., "FusionMamba"
(arXiv 2404.09498), and its published code, whose parameter names are kept.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.subgrids import (
    flops,  # noqa: F401  (registers; not with the operator, since it imports Triton)
    subgrid_conv,
    subgrid_norm,
)
from ssmvision.layers.mamba import inverse_softplus_dt

__all__ = ["ESS2D", "CrossModalScan", "Gate", "SubgridScan"]

Gate = Literal["own", "official"]
# Of the sub-grids that `subgrid_conv` makes. The same walks as the routes skip_even_even, skip_odd_even,
# skip_even_odd and skip_odd_odd of the whole map, but projections are then made for the pixels of a walk only.
ROUTES = ("row", "column", "row", "column")


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


class SubgridScan(nn.Module):
    """What both mixers share: depthwise convolution, projections, scan and norm.

    Args:
        dim: width of the map (C).
        d_state: states per channel (N).
        ssm_ratio: inner width E / `dim`.
        backend: of the scan, see `selective_scan_nd`.
    """

    A: Tensor | None
    A_logs: nn.Parameter | None

    def __init__(self, dim: int, d_state: int = 16, ssm_ratio: float = 2.0, backend: str = "auto") -> None:
        super().__init__()
        self.dim, self.d_state, self.d_inner = dim, d_state, int(ssm_ratio * dim)
        self.dt_rank = math.ceil(dim / 16)
        self.backend = backend
        inner, routes = self.d_inner, len(ROUTES)
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(routes, self.dt_rank + 2 * d_state, inner))
        self.dt_projs_weight = nn.Parameter(torch.empty(routes, inner, self.dt_rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(routes, inner))
        self.A_logs = nn.Parameter(torch.empty(routes * inner, d_state))
        self.Ds = nn.Parameter(torch.empty(routes * inner))
        self.register_buffer("A", None)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_ssm_parameters()

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """S4D-real A, D = 1, Mamba's log-uniform step sizes, and nn.Linear's start of the projections."""
        bound = self.d_inner**-0.5
        nn.init.uniform_(self.x_proj_weight, -bound, bound)
        nn.init.uniform_(self.dt_projs_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        bias = inverse_softplus_dt(self.dt_projs_bias.numel(), device=self.dt_projs_bias.device)
        self.dt_projs_bias.copy_(bias.view_as(self.dt_projs_bias))
        rates = torch.arange(1, self.d_state + 1, dtype=torch.float32)
        if self.A_logs is not None:
            self.A_logs.copy_(torch.log(rates).expand_as(self.A_logs))
        self.Ds.fill_(1.0)

    def no_weight_decay(self) -> set[str]:
        """Parameters that Mamba's authors exclude from weight decay."""
        return {"A_logs", "Ds", "dt_projs_bias"}

    @torch.no_grad()
    def fold_(self) -> None:
        """Leave out, for good, what a forward without gradients need not compute anew: afterwards it cannot train.

        The low rank of the step sizes is filled up with zeros to a multiple of 8, which matrix units ask for.
        """
        if self.A is not None:
            return
        missing = -self.dt_rank % 8
        low, rest = self.x_proj_weight.split([self.dt_rank, 2 * self.d_state], 1)
        self.A = self._decay_rates().clone()
        self.x_proj_weight = _constant(torch.cat((F.pad(low, (0, 0, 0, missing)), rest), 1))
        self.dt_projs_weight = _constant(F.pad(self.dt_projs_weight, (0, missing)))
        self.dt_rank += missing
        self.A_logs = None

    def _decay_rates(self) -> Tensor:
        """A (4, E, N), at least float32."""
        if self.A_logs is None:
            assert self.A is not None
            return self.A
        logs = self.A_logs.to(torch.promote_types(self.A_logs.dtype, torch.float32))
        rates: Tensor = -torch.exp(logs).unflatten(0, (len(ROUTES), -1))
        return rates

    def _convolve(self, x: Tensor) -> Tensor:
        """Sub-grids (B, 4, h, w, E) of SiLU of the depthwise convolution of x (B, H, W, E)."""
        assert self.conv2d.bias is not None
        return subgrid_conv(x, self.conv2d.weight, self.conv2d.bias)

    def _scan(self, parts: Tensor) -> Tensor:
        """Every sub-grid (B, 4, h, w, E) along its route.

        The zeros that fill up an odd map are steps of the published scan, in which the state decays.
        """
        batch, _, *grid, _ = parts.shape
        projected = torch.bmm(parts.transpose(0, 1).flatten(1, 3), self.x_proj_weight.transpose(1, 2))
        low, B, C = projected.split([self.dt_rank, self.d_state, self.d_state], -1)
        delta = torch.bmm(low, self.dt_projs_weight.transpose(1, 2))
        delta, B, C = (t.unflatten(1, (batch, *grid)).transpose(0, 1) for t in (delta, B, C))
        y = selective_scan_nd(
            parts,
            delta,
            self._decay_rates(),
            B,
            C,
            self.Ds.unflatten(0, (len(ROUTES), -1)),
            delta_bias=self.dt_projs_bias,
            delta_softplus=True,
            routes=ROUTES,
            merge="none",
            backend=self.backend,
        )
        assert isinstance(y, Tensor)
        return y

    def _gated(self, y: Tensor, gate: Tensor, silu: bool) -> Tensor:
        """The normed map times its gate (B, H, W, E) or the gate's SiLU, projected: (B, H, W, C)."""
        norm = self.out_norm
        out: Tensor = self.out_proj(subgrid_norm(y, gate, norm.weight, norm.bias, norm.eps, silu))
        return out


class ESS2D(SubgridScan):
    """Gated scan of the four sub-grids, each pixel visited once: a quarter of a four-way cross scan's work.

    Args:
        dim, d_state, ssm_ratio, backend: width (C), states per channel, inner width / `dim`, and the scan's backend.

    Shape:
        (B, H, W, C) -> the same, any size.
    """

    def __init__(self, dim: int, d_state: int = 16, ssm_ratio: float = 2.0, backend: str = "auto") -> None:
        super().__init__(dim, d_state, ssm_ratio, backend)
        self.in_proj = nn.Linear(dim, 2 * self.d_inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the positions."""
        u, z = self.in_proj(x).chunk(2, -1)
        return self._gated(self._scan(self._convolve(u)), z, silu=True)


class CrossModalScan(SubgridScan):
    """Cross-modality fusion (CMFM): one ESS2D scan of x1 x2 + x1 + x2, gated by both maps.

    Args:
        dim, d_state, ssm_ratio, backend: see `ESS2D`.
        gate: where the second gate comes from: "own", the second map, as the first gate comes from the first map; or
            "official", SiLU of the first gate, an error of the published code that all published weights rely on.
        unused_gate: with gate "official", keep the second map's unused gate rows in `in_proj2`, as published
            checkpoints have them.

    Shape:
        two maps (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        ssm_ratio: float = 2.0,
        gate: Gate = "own",
        unused_gate: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(dim, d_state, ssm_ratio, backend)
        self.gate = gate
        self.in_proj1 = nn.Linear(dim, 2 * self.d_inner, bias=False)
        rows = 2 if gate == "own" or unused_gate else 1
        self.in_proj2 = nn.Linear(dim, rows * self.d_inner, bias=False)

    def _project(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Both maps' scan inputs (B, H, W, E) and the sum of their gates, (B, H, W, E)."""
        u1, z1 = self.in_proj1(x1).chunk(2, -1)
        gate1 = F.silu(z1)
        if self.gate == "official":
            return u1, F.linear(x2, self.in_proj2.weight[: self.d_inner]), gate1 + F.silu(gate1)
        u2, z2 = self.in_proj2(x2).chunk(2, -1)
        return u1, u2, gate1 + F.silu(z2)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fuse two maps."""
        u1, u2, gates = self._project(x1, x2)
        parts1, parts2 = self._convolve(torch.cat((u1, u2))).chunk(2)
        return self._gated(self._scan(parts1 * parts2 + parts1 + parts2), gates, silu=False)
