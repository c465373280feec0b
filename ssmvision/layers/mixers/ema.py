"""The damped exponential moving average of Mega along each axis.

Source: Ma et al., "Mega: Moving Average Equipped Gated Attention" (arXiv 2209.10655), section 3.1; its attention is
not part of this mixer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ssmvision.layers.mixers.separable import separable_mixer

__all__ = ["ema_mixer"]


def ema_mixer(
    dim: int,
    spatial_dims: int,
    *,
    d_state: int = 16,
    gate: str = "glu",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """Kernels k_a[l] = sum_n p_n beta_n q_n^l gamma_n / sqrt(N), q_n = 1 - p_n alpha_n, to both sides of every axis.

    Args:
        dim: channels.
        spatial_dims: axes.
        d_state: averages N a channel and direction.
        gate, gate_args: see `build_gate`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`; there is no continuous time, so `rate` is 1.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).
    """
    return separable_mixer(dim, spatial_dims, "ema", {"d_state": d_state}, gate, gate_args, layer)
