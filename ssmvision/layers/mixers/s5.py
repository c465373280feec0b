"""S5: one state space of many inputs and outputs, diagonal and complex, filtered along each axis.

Source: Smith et al., "Simplified State Space Layers for Sequence Modeling" (arXiv 2208.04933), sections 3.1-3.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from ssmvision.kernels.s4nd.init import initial_system
from ssmvision.layers.mixers.separable import long_conv_mixer
from ssmvision.layers.mixers.states import StateMixer
from ssmvision.layers.s4nd_states import S5States

__all__ = ["s5_layer", "s5_mixer"]


def s5_mixer(
    dim: int,
    spatial_dims: int,
    *,
    d_state: int = 64,
    blocks: int = 1,
    dt_min: float = 0.01,
    dt_max: float = 1.0,
    disc: str = "zoh",
    bandlimit: float | None = None,
    gate: str = "glu",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """States x = Lambda_bar x + B_bar u, y = 2 Re(C x) + D u (equation 2); each axis has its own Lambda and step sizes.

    In one dimension and one direction, the paper's layer. Along several axes the states are filtered by the outer
    product of the axes' responses; the second direction of an axis has the output matrix C diag(w).

    Args:
        dim: channels.
        spatial_dims: axes.
        d_state: states, of which one of each conjugate pair is stored.
        blocks: HiPPO-N blocks, from whose eigenvalues Lambda starts; they divide d_state into even parts.
        dt_min, dt_max: range of the initial step sizes, one a state.
        disc: "zoh", as published, or "bilinear".
        bandlimit: see `S5States`.
        gate, gate_args: see `build_gate`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: states that the blocks do not divide, an unknown option.
    """
    if blocks < 1 or d_state % (2 * blocks):
        raise ValueError(f"blocks={blocks} must divide d_state={d_state} into even parts")
    steps = {"dt_min": dt_min, "dt_max": dt_max, "disc": disc, "bandlimit": bandlimit}
    build = partial(s5_layer, d_state=d_state, blocks=blocks, kernel_args=steps)
    return long_conv_mixer(dim, spatial_dims, build, gate, gate_args, layer, symmetric=True)


def s5_layer(width: int, d_state: int, blocks: int, kernel_args: Mapping[str, Any], **options: Any) -> StateMixer:
    """The layer as initialized in the paper's section 3.3 and appendix B.1: B and C in the basis of Lambda.

    The layer's C is twice the paper's, whose factor of 2 stands for the conjugate states.
    """
    with torch.device("cpu"):
        A, _, _, V = initial_system("legs", d_state // blocks, 1, blocks)
        real_B = torch.randn(d_state, width, dtype=torch.float64).unflatten(0, (blocks, -1)) / width**0.5
        real_C = torch.randn(width, d_state, dtype=torch.float64).unflatten(1, (blocks, -1)) / d_state**0.5
        B = torch.einsum("snm,snh->smh", V.conj(), real_B.to(V.dtype)).flatten(0, 1)
        C = torch.einsum("hsn,snm->hsm", real_C.to(V.dtype), V).flatten(1)
    kernel = partial(S5States, A=A.flatten(), **kernel_args)
    return StateMixer(width, B, 2 * C, kernel, **options)
