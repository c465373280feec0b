"""Gates: what published blocks put around the mixing of positions, here around any mixer.

A gate gets a function that builds the mixer's core, a module (B, *grid, W) -> (B, *grid, W), for a width W of the
gate's choice, and is a module (B, *grid, dim) -> (B, *grid, dim) itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.layers.depthwise import DepthwiseConv

__all__ = ["GATES", "H3", "BuildCore", "Gate", "Hyena", "InnerGate", "OutputGate", "ShortConv", "build_gate"]

BuildCore = Callable[[int], nn.Module]


class Gate(nn.Module):
    """What every gate shares."""

    def no_weight_decay(self) -> set[str]:
        """Names of the cores' parameters that weight decay leaves alone."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if module is not self and callable(getattr(module, "no_weight_decay", None))
            for name in module.no_weight_decay()
        }


class ShortConv(nn.Module):
    """Depthwise convolution of (B, *grid, C) with a few taps, zeros around the map.

    Args:
        dim: C.
        spatial_dims: axes.
        size: taps along each axis, odd.
        causal: the taps reach back only, along every axis.
        device, dtype: of the parameters.
    """

    def __init__(self, dim: int, spatial_dims: int, size: int, causal: bool = False, **factory: Any) -> None:
        super().__init__()
        self.conv = DepthwiseConv(dim, spatial_dims, size, **factory)
        self.shift = size // 2 if causal else 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, C) -> the same."""
        axes = x.dim() - 2
        # Centred taps over a map moved ahead by half of them reach back only.
        moved = nn.functional.pad(x, (0, 0, *(self.shift, 0) * axes)) if self.shift else x
        y: Tensor = self.conv(moved)
        for axis in range(axes if self.shift else 0):
            y = y.narrow(axis + 1, 0, x.shape[axis + 1])
        return y


class OutputGate(Gate):
    """The mixer, gelu and a linear map: y = W gelu(mix(x)); with `glu`, y = a o sigmoid(b), (a, b) = W gelu(mix(x)).

    Source: the output of S4 and S4ND (Nguyen et al., arXiv 2210.06583); Dauphin et al. (arXiv 1612.08083) for the GLU.

    Args:
        dim, spatial_dims, build, causal: see `build_gate`.
        glu: gate the result.
        device, dtype: of the parameters.
    """

    def __init__(
        self, dim: int, spatial_dims: int, build: BuildCore, causal: bool, *, glu: bool = False, **factory: Any
    ) -> None:
        super().__init__()
        self.core = build(dim)
        self.out = nn.Linear(dim, 2 * dim if glu else dim, **factory)
        self.glu = glu

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> the same."""
        y: Tensor = self.out(nn.functional.gelu(self.core(x)))
        return nn.functional.glu(y, -1) if self.glu else y


class InnerGate(Gate):
    """The mixer on one branch, a pointwise gate on the other: y = W [act(W1 x) o W2 mix(act(W3 x))].

    Sources: Mehta et al., "Long Range Language Modeling via Gated State Spaces" (arXiv 2206.13947), section 3.2 (GSS:
    gelu, a narrow branch for the mixer); Qin et al., "Toeplitz Neural Network for Sequence Modeling" (arXiv
    2305.04749), section 3.3 (GTU: silu, both branches of one width and no W2).

    Args:
        dim, spatial_dims, build, causal: see `build_gate`.
        expand: width of the gating branch as a multiple of `dim`. GSS has 4 in language models without channel mixers.
        inner: width of the mixer's branch as a multiple of `dim`; None for `expand`, without W2.
        activation: of both branches.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        build: BuildCore,
        causal: bool,
        *,
        expand: float = 2.0,
        inner: float | None = 0.25,
        activation: Callable[[Tensor], Tensor] = nn.functional.gelu,
        **factory: Any,
    ) -> None:
        super().__init__()
        outer = _width(dim, expand, "expand")
        narrow = outer if inner is None else _width(dim, inner, "inner")
        self.activation = activation
        self.gate = nn.Linear(dim, outer, **factory)
        self.value = nn.Linear(dim, narrow, **factory)
        self.core = build(narrow)
        self.widen = nn.Identity() if inner is None else nn.Linear(narrow, outer, **factory)
        self.out = nn.Linear(outer, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> the same."""
        mixed = self.widen(self.core(self.activation(self.value(x))))
        y: Tensor = self.out(self.activation(self.gate(x)) * mixed)
        return y


class H3(Gate):
    """Two multiplications around a short and a long memory: y = W [q o mix(shift(k) o v)], q, k, v = W_qkv x.

    Source: Fu et al., "Hungry Hungry Hippos: Towards Language Modeling with State Space Models" (arXiv 2212.14052),
    section 3.1, with heads of one channel; the shift SSM is a short depthwise convolution.

    Args:
        dim, spatial_dims, build, causal: see `build_gate`.
        shift_size: taps of the shift along each axis.
        device, dtype: of the parameters.
    """

    def __init__(
        self, dim: int, spatial_dims: int, build: BuildCore, causal: bool, *, shift_size: int = 3, **factory: Any
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, **factory)
        self.shift = ShortConv(dim, spatial_dims, shift_size, causal, **factory)
        self.core = build(dim)
        self.out = nn.Linear(dim, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> the same."""
        q, k, v = self.qkv(x).chunk(3, -1)
        y: Tensor = self.out(q * self.core(self.shift(k) * v))
        return y


class Hyena(Gate):
    """The recurrence v_{n+1} = x_n o mix_n(v_n), n = 1 .. order, between two linear maps; y = W v_{order+1}.

    Source: Poli et al., "Hyena Hierarchy: Towards Larger Convolutional Language Models" (arXiv 2302.10866), definition
    3.1 and section 3.4: v_1 and all x_n are linear maps of the input after a short depthwise convolution.

    Args:
        dim, spatial_dims, build, causal: see `build_gate`.
        order: mixers in a row.
        short_size: taps of the short convolution along each axis.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        build: BuildCore,
        causal: bool,
        *,
        order: int = 2,
        short_size: int = 3,
        **factory: Any,
    ) -> None:
        super().__init__()
        if order < 1:
            raise ValueError(f"order must be at least 1, got {order}")
        width = (order + 1) * dim
        self.projections = nn.Linear(dim, width, **factory)
        self.short = ShortConv(width, spatial_dims, short_size, causal, **factory)
        self.cores = nn.ModuleList(build(dim) for _ in range(order))
        self.out = nn.Linear(dim, dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> the same."""
        v, *gates = self.short(self.projections(x)).chunk(len(self.cores) + 1, -1)
        for gate, core in zip(gates, self.cores, strict=True):
            v = gate * core(v)
        y: Tensor = self.out(v)
        return y


GATES: dict[str, Callable[..., nn.Module]] = {
    "none": partial(OutputGate, glu=False),
    "glu": partial(OutputGate, glu=True),
    "gss": InnerGate,
    "gtu": partial(InnerGate, inner=None, activation=nn.functional.silu),
    "h3": H3,
    "hyena": Hyena,
}


def build_gate(
    gate: str,
    dim: int,
    spatial_dims: int,
    build: BuildCore,
    *,
    causal: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """A gate around a mixer.

    Args:
        gate: "none", "glu" (`OutputGate`), "gss", "gtu" (`InnerGate`), "h3" (`H3`) or "hyena" (`Hyena`).
        dim: channels.
        spatial_dims: axes of the map.
        build: makes the mixer's core for a width; called once, for "hyena" `order` times.
        causal: no short convolution of the gate looks ahead along any axis.
        device, dtype: of the gate's parameters.
        options: of the gate's class.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: an unknown gate, an option that it does not have, or a width without channels.
    """
    if gate not in GATES:
        raise ValueError(f"gate={gate!r} is unknown; choose from {', '.join(GATES)}")
    known = _options(gate)
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"gate {gate!r} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    return GATES[gate](dim, spatial_dims, build, causal, device=device, dtype=dtype, **options)


def _options(gate: str) -> list[str]:
    """What a user may set of a gate."""
    fixed = getattr(GATES[gate], "keywords", {})
    parameters = signature(GATES[gate]).parameters.values()
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in fixed]


def _width(dim: int, factor: float, name: str) -> int:
    width = round(dim * factor)
    if width < 1:
        raise ValueError(f"{name}={factor} of {dim} channels leaves none")
    return width
