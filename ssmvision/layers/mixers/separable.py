"""Separable long convolutions as mixers: one engine, whatever generates the kernels of its axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from ssmvision.layers.mixers.gates import build_gate
from ssmvision.layers.s4nd import S4ND

__all__ = ["LAYER_OPTIONS", "long_conv_mixer", "separable_mixer"]

# What every mixer of this family passes on to its convolution.
LAYER_OPTIONS = (
    "bidirectional",
    "symmetric_center",
    "trank",
    "l_max",
    "rate",
    "precision",
    "backend",
    "device",
    "dtype",
)


def long_conv_mixer(
    dim: int,
    spatial_dims: int,
    build: Callable[..., nn.Module],
    gate: str,
    gate_args: Mapping[str, Any] | None,
    layer: Mapping[str, Any],
    symmetric: bool = False,
) -> nn.Module:
    """A gate around a layer of long convolutions.

    Args:
        dim: channels.
        spatial_dims: axes, 1 to 3.
        build: makes the layer, called as `build(width, dim=spatial_dims, **options)`.
        gate, gate_args: see `build_gate`.
        layer: options that the user gave for the layer; see `S4ND` for each.
        symmetric: the default of `symmetric_center` where kernels have two sides.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: an unknown gate or option, or options that contradict each other.
    """
    unknown = sorted(set(layer) - set(LAYER_OPTIONS))
    if unknown:
        raise ValueError(f"the mixer has no option {unknown[0]!r}; besides its own it has {', '.join(LAYER_OPTIONS)}")
    bidirectional = bool(layer.get("bidirectional", True))
    options = {"symmetric_center": symmetric and bidirectional, **layer}
    factory = {name: options[name] for name in ("device", "dtype") if name in options}
    core = partial(build, dim=spatial_dims, **options)
    return build_gate(gate, dim, spatial_dims, core, causal=not bidirectional, **factory, **(gate_args or {}))


def separable_mixer(
    dim: int,
    spatial_dims: int,
    kernel: str,
    kernel_args: Mapping[str, Any],
    gate: str,
    gate_args: Mapping[str, Any] | None,
    layer: Mapping[str, Any],
    symmetric: bool = False,
) -> nn.Module:
    """A gate around y = D u + (k_1 x ... x k_d) * u on channels-last maps; see `S4ND` and `long_conv_mixer`."""
    build = partial(S4ND, kernel=kernel, transposed=False, **kernel_args)
    return long_conv_mixer(dim, spatial_dims, build, gate, gate_args, layer, symmetric)
