"""DSS: diagonal state spaces normalized over the length, along each axis.

Source: Gupta et al., "Diagonal State Spaces are as Effective as Structured State Spaces" (arXiv 2203.14343).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ssmvision.layers.mixers.separable import separable_mixer

__all__ = ["dss_mixer"]


def dss_mixer(
    dim: int,
    spatial_dims: int,
    *,
    d_state: int = 64,
    init: str | tuple[str, ...] = "legs",
    n_ssm: int | None = 1,
    dt_min: float = 0.01,
    dt_max: float = 1.0,
    gate: str = "glu",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """Kernels k_a[l] = Re sum_n C_n B_n (e^z_n - 1) / (A_n (e^{L z_n} - 1)) e^{l z_n}, z_n = dt A_n (proposition 1).

    The kernel of an axis depends on the axis' length L.

    Args:
        dim: channels.
        spatial_dims: axes.
        d_state: twice the complex states that are stored.
        init: of A; "legs" are the eigenvalues of HiPPO's normal part, as published. See `initial_system`.
        n_ssm: how many A and B there are; None for one a channel.
        dt_min, dt_max: range of the initial step sizes.
        gate, gate_args: see `build_gate`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).
    """
    kernel = {"d_state": d_state, "init": init, "n_ssm": n_ssm, "dt_min": dt_min, "dt_max": dt_max}
    return separable_mixer(dim, spatial_dims, "dss", kernel, gate, gate_args, layer, symmetric=True)
