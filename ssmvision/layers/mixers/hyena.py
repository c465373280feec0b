"""Hyena: implicit long filters, along each axis or over the whole grid, between gates.

Sources: Poli et al., "Hyena Hierarchy: Towards Larger Convolutional Language Models" (arXiv 2302.10866); Zimerman and
Wolf, "Multi-Dimensional Hyena for Spatial Inductive Bias" (arXiv 2309.13600), for filters over the whole grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.kernels.s4nd.fft import full_conv_nd
from ssmvision.layers.mamba_layer import autocast_off
from ssmvision.layers.mixers.gates import build_gate
from ssmvision.layers.mixers.separable import separable_mixer
from ssmvision.layers.s4nd import Rates, axis_rates
from ssmvision.layers.s4nd_implicit import HyenaNetwork, Window, evaluate

__all__ = ["GridFilter", "hyena_mixer"]

GRID_OPTIONS = ("bidirectional", "rate", "device", "dtype")


def hyena_mixer(
    dim: int,
    spatial_dims: int,
    *,
    filter_width: int = 64,
    bands: int = 8,
    frequency: float = 10.0,
    reference: int = 64,
    shift: float = 0.05,
    full_nd: bool = False,
    gate: str = "hyena",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """Recurrence v_{n+1} = x_n o (h_n * v_n), h_n the outer product over axes of (e^{-alpha |t|} + shift) FFN(t).

    Args:
        dim: channels.
        spatial_dims: axes.
        filter_width, bands, frequency: of the FFN, see `HyenaNetwork`.
        reference: positions at which t is 1.
        shift: see `Window`.
        full_nd: one filter of all coordinates instead of an outer product, by N-D Fourier transforms: see
            `GridFilter`, slower and of much more memory.
        gate, gate_args: see `build_gate`; "hyena" is the paper's, whose order is `gate_args={"order": 2}`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`; of these a `GridFilter` has its own only.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: an unknown gate or option.
    """
    network: dict[str, Any] = {"bands": bands, "frequency": frequency, "reference": reference, "shift": shift}
    if not full_nd:
        return separable_mixer(dim, spatial_dims, "hyena", network | {"d_state": filter_width}, gate, gate_args, layer)
    unknown = sorted(set(layer) - set(GRID_OPTIONS))
    if unknown:
        raise ValueError(f"full_nd=True has no option {unknown[0]!r}; besides its own it has {', '.join(GRID_OPTIONS)}")
    core = partial(GridFilter, dim=spatial_dims, filter_width=filter_width, **network, **layer)
    factory = {name: layer[name] for name in ("device", "dtype") if name in layer}
    causal = not layer.get("bidirectional", True)
    return build_gate(gate, dim, spatial_dims, core, causal=causal, **factory, **(gate_args or {}))


class GridFilter(nn.Module):
    """y = D u + h * u with one implicit filter h = (e^{-alpha |t|} + shift) FFN(t) of the coordinates t of all axes.

    |t| is Euclidean. The FFN's layers are kept for every lag, (2 L_1 - 1) ... (2 L_d - 1) of them.

    Args:
        width: features H.
        dim: axes.
        filter_width, bands, frequency: of the FFN, see `HyenaNetwork`.
        reference, shift: see `Window`.
        bidirectional: lags to both sides of every axis, else causal along all.
        rate: see `S4ND`.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, H) -> the same.
    """

    def __init__(
        self,
        width: int,
        dim: int,
        *,
        filter_width: int,
        bands: int,
        frequency: float,
        reference: int,
        shift: float,
        bidirectional: bool = True,
        rate: Rates = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.axes, self.bidirectional = dim, bidirectional
        self.window = Window(width, reference, 0.3, 1.5, shift)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.network = HyenaNetwork(dim, bands, filter_width, width, frequency, **factory)
        self.D = nn.Parameter(torch.randn(width, **factory))
        self._scale_to_unit_norm()
        self.resample(rate)

    @torch.no_grad()
    def _scale_to_unit_norm(self) -> None:
        """The FFN's results start at a variance of 1 / 6; the more lags a window lets through, the less of each."""
        weight = self.network.out.weight
        sphere = (2.0, 2 * math.pi, 4 * math.pi)[self.axes - 1] * math.factorial(self.axes - 1)
        lags = sphere * (self.window.reference / (2 * self.window.alpha(weight))) ** self.axes
        weight.mul_(torch.sqrt(6 / lags).clamp(max=1).unsqueeze(-1))

    def resample(self, rate: Rates) -> None:
        """Set the sampling rate; see `S4ND`."""
        self.rate = axis_rates(rate, self.axes)

    def forward(self, u: Tensor) -> Tensor:
        """Convolve a map; see the class."""
        grid = u.shape[1:-1]
        wide = torch.promote_types(self.D.dtype, torch.float32)
        first = [1 - size if self.bidirectional else 0 for size in grid]
        lags = [
            rate * torch.arange(start, size, device=u.device, dtype=wide)
            for start, size, rate in zip(first, grid, self.rate, strict=True)
        ]
        with autocast_off(u.device):
            t = torch.stack(torch.meshgrid(*lags, indexing="ij"), -1) / self.window.reference
            taps = evaluate(self.network, t) * self.window(torch.linalg.vector_norm(t, dim=-1, keepdim=True))
            kernel = taps.movedim(-1, 0) * math.prod(self.rate)
            y = full_conv_nd(u.movedim(-1, 1), kernel, [-start for start in first]).movedim(1, -1)
        return y + self.D * u
