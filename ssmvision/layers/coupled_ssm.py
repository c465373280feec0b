"""Selective scans of several streams whose states see each other (Coupled Mamba).

Source: Li, Zhou, Yu, Song, Yang, "Coupled Mamba: Enhanced Multi-modal Fusion with Coupled State Space Model" (arXiv
2405.18014, NeurIPS 2024): the state of a stream follows from its own and from the other streams' last states. The
authors' published code (hustcselwb/coupled-mamba, a9da100) has no such states: it joins the outputs of separate Mamba
blocks by convolutions between the layers. What follows is the equation, in a form that parallel scans can compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.layers.depthwise import DepthwiseConv
from ssmvision.layers.mamba import inverse_softplus_dt
from ssmvision.layers.mixers.routes import resolve_routes
from ssmvision.layers.norm import LayerNorm

__all__ = ["CoupledFusion", "CoupledSSM", "coupled_scan", "rotation"]


def rotation(angles: Tensor, streams: int) -> Tensor:
    """Rotations of the streams' states: products of plane rotations, one for each pair of streams.

    Args:
        angles: (P, ...) with P = M (M - 1) / 2 pairs of the M streams, in the order of `itertools.combinations`.
        streams: M.

    Returns:
        (M, M, ...), orthogonal over the first two axes.
    """
    rows = [[torch.zeros_like(angles[0]) for _ in range(streams)] for _ in range(streams)]
    for i in range(streams):
        rows[i][i] = torch.ones_like(angles[0])
    for angle, (i, j) in zip(angles, combinations(range(streams), 2), strict=True):
        cos, sin = angle.cos(), angle.sin()
        for row in rows:
            row[i], row[j] = cos * row[i] + sin * row[j], cos * row[j] - sin * row[i]
    return torch.stack([torch.stack(row) for row in rows])


def coupled_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    angles: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    routes: Sequence[str],
    backend: str = "auto",
) -> Tensor:
    """M streams along K routes: h_t = Q exp(delta_t A) Q^T h_{t-1} + delta_t B_t u_t, y_t = C_t h_t.

    h, B and u have one entry a stream; Q is the rotation of `angles` and A diagonal, one entry a mode. Written out,
    with a and s the entries of Q exp(delta_t A) Q^T on and off its diagonal, that is the coupled recurrence

        h^m_t = a^m_t h^m_{t-1} + delta_t B^m_t u^m_t + sum over m' != m of s^{m m'}_t h^{m'}_{t-1}.

    The coupling is symmetric, and never amplifies for A < 0. Exact by linearity: in the modes Q^T h nothing is coupled,
    so every mode is scanned once for each stream that drives it, M^2 scans a route.

    Args:
        u: (batch, M, *grid, E).
        delta: (batch, K, *grid, E), positive: one for all streams.
        A: (K, M, E, N), negative.
        angles: (K, P, E), see `rotation`.
        B: (batch, K, M, *grid, N).
        C: (batch, K, *grid, N), one for all streams.
        routes, backend: see `selective_scan_nd`.

    Returns:
        (batch, M, *grid, E), the sum over the routes, in u's dtype.
    """
    batch, streams, *grid, width = u.shape
    count, ones = len(routes), (1,) * len(grid)
    turn = rotation(angles.movedim(1, 0), streams).permute(2, 1, 0, 3).to(u.dtype)  # (K, mode, stream, E)
    shape = (batch, count, streams, streams, *grid)
    drive = turn.view(1, count, streams, streams, *ones, width) * u[:, None, None]
    every = (slice(None), slice(None), None, None)
    y = selective_scan_nd(
        drive.flatten(1, 3),
        delta[every].expand(*shape, width).flatten(1, 3),
        A[:, :, None].expand(-1, -1, streams, -1, -1).flatten(0, 2),
        B[:, :, None].expand(*shape, B.shape[-1]).flatten(1, 3),
        C[every].expand(*shape, C.shape[-1]).flatten(1, 3),
        routes=[route for route in routes for _ in range(streams**2)],
        merge="none",
        backend=backend,
    )
    assert isinstance(y, Tensor)
    modes = y.view(*shape, width).sum(3)
    read = turn.view(1, count, streams, streams, *ones, width)
    return (read * modes.unsqueeze(3)).sum((1, 2))


class CoupledSSM(nn.Module):
    """Mamba mixers of several maps, whose states are coupled: see `coupled_scan`.

    Each stream has its own projections, depthwise convolution, B, D, norm and gate; step size and C are made from all
    streams together.

    Args:
        dim: channels of every stream.
        spatial_dims: axes of the maps.
        streams: their number M, at least 2.
        d_state: states per channel N.
        expand: inner width E / `dim`.
        d_conv: odd side of the depthwise convolutions.
        routes: names out of `ssmvision.ops.route_names(spatial_dims)`; None for every axis, both ways.
        backend: of the scan.

    Shape:
        M maps (B, *grid, dim) -> M maps of this shape.

    Raises:
        ValueError: fewer than two streams, routes that the grid does not have, or from forward, maps that do not fit.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        streams: int = 2,
        d_state: int = 16,
        expand: float = 2.0,
        d_conv: int = 3,
        routes: Sequence[str] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        if streams < 2:
            raise ValueError(f"streams={streams}: coupling needs at least two")
        self.streams, self.d_state, self.d_inner = streams, d_state, int(expand * dim)
        self.dt_rank, self.backend = math.ceil(dim / 16), backend
        self.routes = resolve_routes(routes, spatial_dims)
        count, inner = len(self.routes), self.d_inner
        self.in_projs = nn.ModuleList(nn.Linear(dim, 2 * inner, bias=False) for _ in range(streams))
        self.convs = nn.ModuleList(DepthwiseConv(inner, spatial_dims, d_conv, "silu") for _ in range(streams))
        self.joint_proj = nn.Linear(streams * inner, count * (self.dt_rank + d_state), bias=False)
        self.B_projs = nn.ModuleList(nn.Linear(inner, count * d_state, bias=False) for _ in range(streams))
        self.dt_weight = nn.Parameter(torch.empty(count, inner, self.dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(count, inner))
        self.A_log = nn.Parameter(torch.empty(count, streams, inner, d_state))
        self.angles = nn.Parameter(torch.empty(count, streams * (streams - 1) // 2, inner))
        self.D = nn.Parameter(torch.ones(streams, inner))
        self.out_norms = nn.ModuleList(LayerNorm(inner) for _ in range(streams))
        self.out_projs = nn.ModuleList(nn.Linear(inner, dim, bias=False) for _ in range(streams))
        self.reset_ssm_parameters()

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """Mamba's start of the step sizes; modes that decay at 1, 2, ... times its rates; coupling of any strength."""
        nn.init.uniform_(self.dt_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
        self.dt_bias.copy_(inverse_softplus_dt(self.dt_bias.numel(), device=self.dt_bias.device).view_as(self.dt_bias))
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32)
        modes = torch.arange(1, self.streams + 1, dtype=torch.float32)  # equal modes would not couple
        self.A_log.copy_((modes[:, None, None] * states).log().expand_as(self.A_log))
        nn.init.uniform_(self.angles, 0.0, math.pi / 4)

    def no_weight_decay(self) -> set[str]:
        """Parameters of more than one axis that weight decay leaves alone."""
        return {"A_log", "D", "angles", "dt_bias"}

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        if len(maps) != self.streams or len({m.shape for m in maps}) > 1:
            raise ValueError(f"expected {self.streams} maps of one shape, got {[tuple(m.shape) for m in maps]}")
        pairs = [proj(x).chunk(2, -1) for proj, x in zip(self.in_projs, maps, strict=True)]
        inputs = [conv(u) for conv, (u, _) in zip(self.convs, pairs, strict=True)]
        y = self._scan(inputs)
        outs = []
        for m, (norm, proj) in enumerate(zip(self.out_norms, self.out_projs, strict=True)):
            mixed = y[:, m] + self.D[m] * inputs[m]
            outs.append(proj(norm(mixed).to(inputs[m].dtype) * F.silu(pairs[m][1])))
        return tuple(outs)

    def _scan(self, inputs: list[Tensor]) -> Tensor:
        """(B, *grid, E) of each stream -> (B, M, *grid, E)."""
        count = len(self.routes)
        joint = (
            self.joint_proj(torch.cat(inputs, -1)).unflatten(-1, (count, self.dt_rank + self.d_state)).movedim(-2, 1)
        )
        low, C = joint.split([self.dt_rank, self.d_state], -1)
        weight = self.dt_weight.to(low.dtype)
        steps = torch.matmul(low.flatten(2, -2), weight.transpose(1, 2)).view(*low.shape[:-1], self.d_inner)
        bias = self.dt_bias.view(count, *(1,) * (low.dim() - 3), -1)
        delta = F.softplus(steps.to(bias.dtype) + bias)
        driven = zip(self.B_projs, inputs, strict=True)
        B = torch.stack([proj(u).unflatten(-1, (count, self.d_state)).movedim(-2, 1) for proj, u in driven], 2)
        rates = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        u = torch.stack(inputs, 1)
        return coupled_scan(u, delta, rates, self.angles, B, C, routes=self.routes, backend=self.backend)


class CoupledFusion(nn.Module):
    """Fusion of two maps: x1 + x2 + y1 + y2 with y1, y2 = CoupledSSM(norm(x1), norm(x2)).

    Args:
        dim: channels.
        d_state: states per channel.
        spatial_dims: axes of the maps.

    Shape:
        two maps (B, *grid, dim) -> one.
    """

    def __init__(self, dim: int, d_state: int = 16, spatial_dims: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.coupled = CoupledSSM(dim, spatial_dims, d_state=d_state)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fuse two maps."""
        y1, y2 = self.coupled(self.norm1(x1), self.norm2(x2))
        fused: Tensor = x1 + x2 + y1 + y2
        return fused
