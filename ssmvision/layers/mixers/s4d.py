"""S4D: diagonal state-space kernels along each axis.

Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ssmvision.layers.mixers.separable import separable_mixer

__all__ = ["s4d_mixer"]


def s4d_mixer(
    dim: int,
    spatial_dims: int,
    *,
    d_state: int = 64,
    init: str | tuple[str, ...] = "diag-lin",
    n_ssm: int | None = 1,
    dt_min: float = 0.01,
    dt_max: float = 1.0,
    bandlimit: float | None = None,
    antialias: bool = False,
    gate: str = "glu",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """Kernels k_a[l] = 2 Re sum_n C_n B_n (e^{dt A_n} - 1) / A_n e^{l dt A_n} to both sides of every axis.

    Args:
        dim: channels.
        spatial_dims: axes.
        d_state: states N; one of each conjugate pair is stored.
        init: of A: "diag-lin" is S4D-Lin, "diag-inv" S4D-Inv, "legs" S4D-LegS; see `initial_system`.
        n_ssm: how many A and B there are; None for one a channel.
        dt_min, dt_max: range of the initial step sizes: memories of 1 to 100 positions.
        bandlimit, antialias: see `S4DKernel`.
        gate, gate_args: see `build_gate`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).
    """
    kernel = {"d_state": d_state, "init": init, "n_ssm": n_ssm, "dt_min": dt_min, "dt_max": dt_max}
    kernel |= {"bandlimit": bandlimit, "antialias": antialias}
    return separable_mixer(dim, spatial_dims, "s4d", kernel, gate, gate_args, layer, symmetric=True)
