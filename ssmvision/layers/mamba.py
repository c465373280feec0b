"""The Mamba mixer: gated causal convolution and selective scan over a token sequence, along one or several routes.

Sources: Gu and Dao, "Mamba" (arXiv 2312.00752), figure 3; Zhu et al., "Vision Mamba" (arXiv 2401.09417), algorithm 1,
for the bidirectional form.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.selective_scan import selective_scan_nd

__all__ = ["MambaMixer", "inverse_softplus_dt"]

# Official parameter names carry the direction as a suffix, with the irregular A_b_log.
SUFFIX = {"forward": "", "backward": "_b"}


def inverse_softplus_dt(
    size: int, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4, **factory: Any
) -> Tensor:
    """Bias (size,) such that softplus(bias) is log-uniform in [dt_min, dt_max], not below `floor` (Mamba's rule)."""
    dt = torch.exp(torch.rand(size, **factory) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
    dt = dt.clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


class MambaMixer(nn.Module):
    """Mamba-1 mixer over a token sequence.

    Args:
        dim: width of the tokens.
        d_state: states per channel (N).
        d_conv: taps of the causal depthwise convolution.
        expand: inner width / `dim`.
        dt_rank: rank of the step-size projection; "auto" is ceil(dim / 16).
        bidirectional: scan backwards as well, with that direction's own convolution, projections, A and D.
        merge: how two directions are joined, "mean" (Vim's halving) or "sum".
        backward_dt_init: "zero" starts the backward direction at step size softplus(0) = 0.69, as the official code
            does; "mamba" gives it the forward direction's log-uniform start.
        backend: see `ssmvision.ops.selective_scan_nd`.
        device, dtype: of the parameters.

    Shape:
        (B, L, dim) -> (B, L, dim), any L.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        bidirectional: bool = False,
        merge: Literal["sum", "mean"] = "mean",
        backward_dt_init: Literal["zero", "mamba"] = "zero",
        backend: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.d_state, self.d_conv = dim, d_state, d_conv
        self.d_inner = int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else int(dt_rank)
        self.routes = ("forward", "backward") if bidirectional else ("forward",)
        self.merge: Literal["sum", "mean"] = merge
        self.backward_dt_init = backward_dt_init
        self.backend = backend

        self.in_proj = nn.Linear(dim, 2 * self.d_inner, bias=False, **factory)
        for route in self.routes:
            self._add_direction(SUFFIX[route], factory)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=False, **factory)
        self.reset_ssm_parameters()

    def _add_direction(self, suffix: str, factory: dict[str, Any]) -> None:
        inner, state = self.d_inner, self.d_state
        conv = nn.Conv1d(inner, inner, self.d_conv, groups=inner, padding=self.d_conv - 1, **factory)
        setattr(self, f"conv1d{suffix}", conv)
        setattr(self, f"x_proj{suffix}", nn.Linear(inner, self.dt_rank + 2 * state, bias=False, **factory))
        setattr(self, f"dt_proj{suffix}", nn.Linear(self.dt_rank, inner, bias=True, **factory))
        setattr(self, f"A{suffix}_log", nn.Parameter(torch.empty(inner, state, **factory)))
        setattr(self, f"D{suffix}", nn.Parameter(torch.empty(inner, **factory)))

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """S4D-real A, D = 1, and Mamba's step-size start (see `backward_dt_init` for the second direction)."""
        for route in self.routes:
            suffix = SUFFIX[route]
            a_log: Tensor = getattr(self, f"A{suffix}_log")
            a_log.copy_(torch.log(torch.arange(1, self.d_state + 1, dtype=torch.float32)).expand_as(a_log))
            getattr(self, f"D{suffix}").fill_(1.0)
            dt_proj: nn.Linear = getattr(self, f"dt_proj{suffix}")
            nn.init.uniform_(dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            if route == "backward" and self.backward_dt_init == "zero":
                dt_proj.bias.zero_()
            else:
                dt_proj.bias.copy_(inverse_softplus_dt(self.d_inner, device=dt_proj.bias.device))

    def no_weight_decay(self) -> set[str]:
        """Parameters that Mamba's authors exclude from weight decay: A_log, D and the step-size biases."""
        names = set()
        for suffix in (SUFFIX[r] for r in self.routes):
            names |= {f"A{suffix}_log", f"D{suffix}", f"dt_proj{suffix}.bias"}
        return names

    def _project(self, x: Tensor, route: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One direction's convolved input (B, L, E), step size before bias (B, L, E), B and C (B, L, N)."""
        suffix = SUFFIX[route]
        conv: nn.Conv1d = getattr(self, f"conv1d{suffix}")
        taps, pad = conv.weight, (self.d_conv - 1, 0)
        if route == "backward":  # causal along the reversed sequence = anti-causal here; nothing is flipped
            taps, pad = taps.flip(-1), pad[::-1]
        u = F.conv1d(F.pad(x.transpose(1, 2), pad), taps, conv.bias, groups=self.d_inner)
        u = F.silu(u).transpose(1, 2)
        low, B, C = getattr(self, f"x_proj{suffix}")(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return u, F.linear(low, getattr(self, f"dt_proj{suffix}").weight), B, C

    def _stacked(self, name: str) -> Tensor:
        return torch.stack([getattr(self, name.format(SUFFIX[r])) for r in self.routes])

    def forward(self, tokens: Tensor) -> Tensor:
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        u, delta, B, C = (torch.stack(p, 1) for p in zip(*(self._project(x, r) for r in self.routes), strict=True))
        bias = torch.stack([getattr(self, f"dt_proj{SUFFIX[r]}").bias for r in self.routes])
        y = selective_scan_nd(
            u,
            delta,
            -torch.exp(self._stacked("A{}_log").float() if not tokens.dtype == torch.float64 else self._stacked("A{}_log")),
            B,
            C,
            self._stacked("D{}"),
            z,
            bias,
            delta_softplus=True,
            routes=self.routes,
            merge=self.merge,
            backend=self.backend,
        )
        return self.out_proj(y)
