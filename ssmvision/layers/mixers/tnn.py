"""TNN: Toeplitz matrices of a relative position network with decay, along each axis.

Source: Qin et al., "Toeplitz Neural Network for Sequence Modeling" (arXiv 2305.04749).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ssmvision.layers.mixers.separable import separable_mixer

__all__ = ["tnn_mixer"]


def tnn_mixer(
    dim: int,
    spatial_dims: int,
    *,
    rpe_width: int = 32,
    rpe_layers: int = 3,
    decay: float = 0.99,
    gate: str = "gtu",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """Gated Toeplitz products y = W (act(W_u x) o T act(W_v x)), T_{i-j} = decay^|i-j| MLP(i - j) (equations 7, 9, 11).

    Every axis has its own MLP; T is the outer product over the axes.

    Args:
        dim: channels.
        spatial_dims: axes.
        rpe_width, rpe_layers: of the MLP.
        decay: lambda of equation 9, in (0, 1].
        gate, gate_args: see `build_gate`; "gtu" is the paper's.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).
    """
    kernel = {"d_state": rpe_width, "layers": rpe_layers, "decay": decay, "skip": False}
    return separable_mixer(dim, spatial_dims, "tnn", kernel, gate, gate_args, layer)
