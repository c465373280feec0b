"""LRU, the linear recurrent unit: complex diagonal states with an exponential parametrization, along each axis.

Source: Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences" (arXiv 2303.06349), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ssmvision.layers.mixers.separable import long_conv_mixer
from ssmvision.layers.mixers.states import StateMixer
from ssmvision.layers.s4nd_states import LRUStates

__all__ = ["lru_layer", "lru_mixer"]


def lru_mixer(
    dim: int,
    spatial_dims: int,
    *,
    d_state: int = 64,
    r_min: float = 0.0,
    r_max: float = 1.0,
    max_phase: float = 2 * math.pi,
    gate: str = "glu",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """States x = lambda o x + gamma o B u, y = Re(C x) + D u with lambda = exp(-e^nu + i e^theta) for each axis.

    In one dimension and one direction, the paper's layer; more axes and directions are as in S5.

    Args:
        dim: channels.
        spatial_dims: axes.
        d_state: complex states N.
        r_min, r_max, max_phase: the ring of initial lambdas, see `LRUStates`.
        gate, gate_args: see `build_gate`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`; there is no continuous time, so `rate` is 1.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).
    """
    build = partial(lru_layer, d_state=d_state, ring={"r_min": r_min, "r_max": r_max, "max_phase": max_phase})
    return long_conv_mixer(dim, spatial_dims, build, gate, gate_args, layer)


def lru_layer(width: int, d_state: int, ring: Mapping[str, Any], **options: Any) -> StateMixer:
    """The layer with the initial B and C of the paper's appendix A."""
    with torch.device("cpu"):
        B = torch.randn(d_state, width, dtype=torch.complex128) / width**0.5
        C = torch.randn(width, d_state, dtype=torch.complex128) * (2 / d_state) ** 0.5
    return StateMixer(width, B, C, partial(LRUStates, **ring), **options)
