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

from ssmvision.kernels.mamba_mixer import flops  # noqa: F401  (registers; not with the operator, since it imports Triton)
from ssmvision.kernels.mamba_mixer.args import Parameters
from ssmvision.kernels.mamba_mixer.interface import MAX_TAPS, Recompute, compute_dtype, run_mixer
from ssmvision.kernels.mamba_mixer.on_map import MapSettings, mixer_on_map
from ssmvision.kernels.mamba_mixer.op import is_eager
from ssmvision.kernels.registry import Request, choose
from ssmvision.kernels.selective_scan import selective_scan_nd

Merge = Literal["sum", "mean", "none"]

__all__ = ["MambaMixer", "inverse_softplus_dt"]

# Official parameter names carry the direction as a suffix, with the irregular A_b_log.
SUFFIX = {"forward": "", "backward": "_b"}
# What the operator's parameters may come from; subclasses may do anything.
PLAIN = (nn.Linear, nn.Conv1d)


def inverse_softplus_dt(
    size: int, dt_min: float = 1e-3, dt_max: float = 0.1, floor: float = 1e-4, **factory: Any
) -> Tensor:
    """Bias (size,) such that softplus(bias) is log-uniform in [dt_min, dt_max], not below `floor` (Mamba's rule)."""
    dt = torch.exp(torch.rand(size, **factory) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min))
    dt = dt.clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _scan_is_fast(device: str, dtype: torch.dtype, backend: str) -> bool:
    """Whether the convolution has a kernel beside the scan's. The registry knows, which a compiler need not trace."""
    return choose("selective_scan", Request(device, dtype), backend).name in ("cuda", "numba")


class MambaMixer(nn.Module):
    """Mamba-1 mixer over a token sequence.

    Args:
        dim: width of the tokens.
        d_state: states per channel (N).
        d_conv: taps of the causal depthwise convolution.
        expand: inner width / `dim`.
        dt_rank: rank of the step-size projection; "auto" is ceil(dim / 16).
        bidirectional: scan backwards as well, with that direction's own convolution, projections, A and D.
        shared_directions: the backward direction has an A of its own only and scans the forward convolution's output
            (Vim's "v1" form).
        merge: how two directions are joined, "mean" (Vim's halving) or "sum".
        backward_dt_init: "zero" starts the backward direction at step size softplus(0) = 0.69, as the official code
            does; "mamba" gives it the forward direction's log-uniform start.
        bias: give `in_proj` and `out_proj` a bias.
        conv_bias: give the convolutions a bias.
        layer_scale: start value of a learned factor per output channel, None for no such factor.
        backend: of the scan, see `selective_scan_nd`.
        fused: run as one operator (`ssmvision.kernels.mamba_mixer`), which takes fewer launches and less memory than
            the layers one by one, and is the same function up to rounding. None: where the scan's backend is "cuda" or
            "numba".
            True: everywhere; False: nowhere. In any case the layers run one by one for shared directions, for more
            than 8 taps, and as long as a projection or convolution has hooks or was replaced by another kind of layer.
        recompute: what the operator's backward computes again to save memory, "none", "least", "scan" or "all"; see
            `mamba_mixer`.
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
        shared_directions: bool = False,
        bias: bool = False,
        conv_bias: bool = True,
        layer_scale: float | None = None,
        fused: bool | None = None,
        recompute: Recompute = "least",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.dim, self.d_state, self.d_conv = dim, d_state, d_conv
        self.d_inner = int(expand * dim)
        self.dt_rank = math.ceil(dim / 16) if dt_rank == "auto" else int(dt_rank)
        self.routes = ("forward", "backward") if bidirectional else ("forward",)
        self.shared_directions = shared_directions
        self.merge: Merge = merge
        self.backward_dt_init = backward_dt_init
        self.backend = backend
        self.fused = fused
        self.recompute: Recompute = recompute

        self.in_proj = nn.Linear(dim, 2 * self.d_inner, bias=bias, **factory)
        for route in self.routes:
            self._add_direction(route, conv_bias, factory)
        self.out_proj = nn.Linear(self.d_inner, dim, bias=bias, **factory)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale, **factory))
        self.reset_ssm_parameters()

    def _suffix(self, route: str) -> str:
        """Of the names of a direction's parameters, A excepted."""
        return "" if self.shared_directions else SUFFIX[route]

    def _add_direction(self, route: str, conv_bias: bool, factory: dict[str, Any]) -> None:
        inner, state, suffix = self.d_inner, self.d_state, self._suffix(route)
        setattr(self, f"A{SUFFIX[route]}_log", nn.Parameter(torch.empty(inner, state, **factory)))
        if hasattr(self, f"D{suffix}"):
            return
        setattr(self, f"D{suffix}", nn.Parameter(torch.empty(inner, **factory)))
        conv = nn.Conv1d(inner, inner, self.d_conv, groups=inner, padding=self.d_conv - 1, bias=conv_bias, **factory)
        setattr(self, f"conv1d{suffix}", conv)
        setattr(self, f"x_proj{suffix}", nn.Linear(inner, self.dt_rank + 2 * state, bias=False, **factory))
        setattr(self, f"dt_proj{suffix}", nn.Linear(self.dt_rank, inner, bias=True, **factory))

    @torch.no_grad()
    def reset_ssm_parameters(self) -> None:
        """S4D-real A, D = 1, and Mamba's step-size start (see `backward_dt_init` for the second direction)."""
        for route in self.routes:
            a_log: Tensor = getattr(self, f"A{SUFFIX[route]}_log")
            a_log.copy_(torch.log(torch.arange(1, self.d_state + 1, dtype=torch.float32)).expand_as(a_log))
            if route == "backward" and self.shared_directions:
                continue
            suffix = self._suffix(route)
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
        for route in self.routes:
            suffix = self._suffix(route)
            names |= {f"A{SUFFIX[route]}_log", f"D{suffix}", f"dt_proj{suffix}.bias"}
        return names

    def _project(self, x: Tensor, route: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One direction's convolved input (B, L, E), step size before bias (B, L, E), B and C (B, L, N)."""
        suffix = self._suffix(route)
        conv: nn.Conv1d = getattr(self, f"conv1d{suffix}")
        taps, pad = conv.weight, (self.d_conv - 1, 0)
        if route == "backward":  # causal along the reversed sequence = anti-causal here; nothing is flipped
            taps, pad = taps.flip(-1), pad[::-1]
        u = F.conv1d(F.pad(x.transpose(1, 2), pad), taps, conv.bias, groups=self.d_inner)
        u = F.silu(u).transpose(1, 2)
        low, B, C = getattr(self, f"x_proj{suffix}")(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return u, F.linear(low, getattr(self, f"dt_proj{suffix}").weight), B, C

    def _scan_inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Scan input u (B, K, L, E), or (B, L, E) where the directions share it, delta (B, K, L, E), B, C."""
        if not self.shared_directions:
            u, delta, B, C = (torch.stack(p, 1) for p in zip(*(self._project(x, r) for r in self.routes), strict=True))
            return u, delta, B, C
        u, *rest = self._project(x, "forward")
        delta, B, C = (p.unsqueeze(1).expand(-1, len(self.routes), -1, -1) for p in rest)
        return u, delta, B, C

    def scan(self, tokens: Tensor, merge: Merge | None = None) -> Tensor:
        """The gated scan before `out_proj`.

        Args:
            tokens: (B, L, dim).
            merge: in place of the mixer's own; "none" keeps the directions apart.

        Returns:
            (B, L, E), or (B, K, L, E) for "none", each direction in the order of `tokens`.
        """
        x, z = self.in_proj(tokens).chunk(2, dim=-1)
        u, delta, B, C = self._scan_inputs(x)
        a_log = torch.stack([getattr(self, f"A{SUFFIX[r]}_log") for r in self.routes])
        suffixes = [self._suffix(r) for r in self.routes]
        y = selective_scan_nd(
            u,
            delta,
            -torch.exp(a_log.to(torch.promote_types(a_log.dtype, torch.float32))),
            B,
            C,
            torch.stack([getattr(self, f"D{s}") for s in suffixes]),
            z,
            torch.stack([getattr(self, f"dt_proj{s}").bias for s in suffixes]),
            delta_softplus=True,
            routes=self.routes,
            merge=self.merge if merge is None else merge,
            backend=self.backend,
        )
        assert isinstance(y, Tensor)
        return y

    def _is_plain(self) -> bool:
        """Whether the operator does what the layers would: not where one has hooks or is another kind of layer."""
        if self.shared_directions or self.d_conv > MAX_TAPS:
            return False
        layers = [self.in_proj, self.out_proj]
        for suffix in map(self._suffix, self.routes):
            layers += [getattr(self, f"{name}{suffix}") for name in ("conv1d", "x_proj", "dt_proj")]
        return all(type(m) in PLAIN and not (m._forward_hooks or m._forward_pre_hooks) for m in layers)

    def _uses_operator(self, tokens: Tensor) -> bool:
        if self.fused is False or not self._is_plain():
            return False
        return self.fused is True or _scan_is_fast(str(tokens.device), compute_dtype(tokens), self.backend)

    def _parameters_by_route(self) -> Parameters:
        suffixes = [self._suffix(route) for route in self.routes]
        convs, x_projs, dt_projs = (
            [getattr(self, f"{name}{suffix}") for suffix in suffixes] for name in ("conv1d", "x_proj", "dt_proj")
        )
        in_proj, out_proj = self.in_proj, self.out_proj
        biases = [conv.bias for conv in convs]
        return Parameters(
            in_proj.weight,
            in_proj.bias,
            out_proj.weight,
            out_proj.bias,
            conv_weight=tuple([conv.weight for conv in convs]),
            conv_bias=() if biases[0] is None else tuple(biases),
            x_weight=tuple([x_proj.weight for x_proj in x_projs]),
            dt_weight=tuple([dt_proj.weight for dt_proj in dt_projs]),
            dt_bias=tuple([dt_proj.bias for dt_proj in dt_projs]),
            A_log=tuple([getattr(self, f"A{SUFFIX[route]}_log") for route in self.routes]),
            D=tuple([getattr(self, f"D{suffix}") for suffix in suffixes]),
        )

    def on_map(self, x: Tensor, norm: nn.LayerNorm) -> Tensor | None:
        """The mixer over the positions of a map, its channels normed, of which the backward keeps only the map.

        Args:
            x: (B, dim, L), contiguous.
            norm: over the channels.

        Returns:
            (B, dim, L) in x's dtype, contiguous; None where the operator cannot do what the layers would.
        """
        plain = not (norm._forward_hooks or norm._forward_pre_hooks or self._forward_hooks or self._forward_pre_hooks)
        if not plain or self.gamma is not None or not is_eager(x) or not self._uses_operator(norm.weight):
            return None
        settings = MapSettings(self.routes, self.merge, self.backend, norm.eps, compute_dtype(norm.weight))
        return mixer_on_map(x, norm.weight, norm.bias, self._parameters_by_route(), settings)

    def forward(self, tokens: Tensor, recompute: Recompute | None = None) -> Tensor:
        """(B, L, dim) -> (B, L, dim); `recompute` in place of the mixer's own, if given."""
        if self._uses_operator(tokens):
            p = self._parameters_by_route()
            out = run_mixer(tokens, p, self.routes, self.merge, recompute or self.recompute, self.backend)
        else:
            out = self.out_proj(self.scan(tokens))
        return out if self.gamma is None else out * self.gamma
