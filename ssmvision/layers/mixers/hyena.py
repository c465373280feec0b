"""Hyena: implicit long filters along each axis between gates.

Source: Poli et al., "Hyena Hierarchy: Towards Larger Convolutional Language Models" (arXiv 2302.10866).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ssmvision.layers.mixers.separable import separable_mixer

__all__ = ["hyena_mixer"]


def hyena_mixer(
    dim: int,
    spatial_dims: int,
    *,
    filter_width: int = 64,
    bands: int = 8,
    frequency: float = 10.0,
    reference: int = 64,
    shift: float = 0.05,
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
        shift: see `HyenaKernel`.
        gate, gate_args: see `build_gate`; "hyena" is the paper's, whose order is `gate_args={"order": 2}`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).
    """
    kernel = {"d_state": filter_width, "bands": bands, "frequency": frequency, "reference": reference, "shift": shift}
    return separable_mixer(dim, spatial_dims, "hyena", kernel, gate, gate_args, layer)
