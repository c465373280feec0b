"""S4ND as a mixer, the one of U-Mamba's S4ND networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from ssmvision.layers.mixers.gates import build_gate
from ssmvision.layers.s4nd import S4ND

__all__ = ["s4nd_mixer"]


def s4nd_mixer(
    dim: int,
    spatial_dims: int,
    *,
    gate: str | None = None,
    gate_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """A global S4ND with a gated pointwise output, on feature maps of any size.

    Diagonal kernels, since their parameters do not depend on the map's size; memories of 1 to 100 voxels.

    Args:
        dim: channels.
        spatial_dims: axes.
        gate: one of `build_gate` around the convolution alone; None for the layer's own output, a GLU as published.
        gate_args: of the gate.
        options: of `S4ND`, over these defaults.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: an unknown gate or an option that it does not have; see also `S4ND`.
    """
    defaults: dict[str, Any] = {"kernel": "s4d", "init": "legs", "n_ssm": 1, "dt_min": 0.01, "dt_max": 1.0}
    bidirectional = options.get("bidirectional", True)
    defaults |= {"symmetric_center": bidirectional, "transposed": False, "dim": spatial_dims}
    if gate is None:
        if gate_args:
            raise ValueError(f"gate_args={dict(gate_args)} needs a gate; choose one, such as gate='gss'")
        return S4ND(dim, **(defaults | {"linear": False, "final_act": "glu"} | options))
    factory = {name: options[name] for name in ("device", "dtype") if name in options}
    core = partial(S4ND, **(defaults | options))
    return build_gate(gate, dim, spatial_dims, core, causal=not bidirectional, **factory, **(gate_args or {}))
