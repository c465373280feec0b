"""Stacking and casting a mixer's parameters: two buffers, views into them, and where each parameter goes.

One buffer holds the projections in the compute dtype, the other everything that the scan and the convolution want in at
least float32. Filling both takes one kernel on CUDA and one copy a parameter elsewhere. That kernel is short enough to
run at every call: packed weights that outlive a call would miss changes made through `.data`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.mamba_mixer.args import Parameters, Sizes, Weights, sizes_of

__all__ = ["Buffers", "Place", "Plan", "buffers", "copy_parameters", "lay_out", "layout_of", "view"]

ALIGNMENT = 16  # elements, so that every part starts at a multiple of 32 bytes
# Parameters that need no stacking: taken as they are where they have the compute dtype already.
ENDS = ("in_weight", "in_bias", "out_weight", "out_bias")


class Slot(NamedTuple):
    """A part of a buffer: the field of `Weights` that it holds, its shape, strides and first element."""

    field: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    exact: bool


class Place(NamedTuple):
    """Where one parameter goes: into the exact buffer or the low one, from an element on; A_log becomes -exp(A_log)."""

    exact: bool
    offset: int
    count: int
    exponential: bool


class Plan(NamedTuple):
    """Layout of both buffers: their parts, the place of every parameter, and the elements of each."""

    slots: tuple[Slot, ...]
    places: tuple[Place, ...]
    low: int
    exact: int

    def sources(self, p: Parameters) -> list[Tensor]:
        """The parameters, in the order of `places`."""
        found: list[Tensor] = []
        for slot in self.slots:
            value = p.A_log if slot.field == "A" else getattr(p, slot.field)
            found += value if isinstance(value, tuple) else (value,)
        return found


Buffers = tuple[Tensor, Tensor]


def _shapes(s: Sizes, cast: bool) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Fields of the low and of the exact buffer."""
    low: dict[str, tuple[int, ...]] = {}
    if cast:
        low = {"in_weight": (2 * s.inner, s.dim), "out_weight": (s.dim, s.inner)}
        low |= {"in_bias": (2 * s.inner,), "out_bias": (s.dim,)} if s.bias else {}
    low |= {"x_weight": (s.routes, s.rank + 2 * s.state, s.inner), "dt_weight": (s.routes, s.inner, s.rank)}
    per_channel = (s.routes, s.inner)
    exact = {"conv_weight": (*per_channel, s.taps), "A": (*per_channel, s.state), "dt_bias": per_channel}
    return low, exact | {"D": per_channel} | ({"conv_bias": per_channel} if s.conv_bias else {})


def _places(slot: Slot) -> list[Place]:
    if slot.field in ENDS:
        return [Place(slot.exact, slot.offset, math.prod(slot.shape), False)]
    step = slot.strides[0]
    return [Place(slot.exact, slot.offset + k * step, step, slot.field == "A") for k in range(slot.shape[0])]


def lay_out(s: Sizes, cast: bool) -> Plan:
    """Lay out the buffers.

    Args:
        s: of the mixer.
        cast: the projections' parameters have another dtype than the compute dtype.
    """
    slots: list[Slot] = []
    ends = []
    for fields, exact in zip(_shapes(s, cast), (False, True), strict=True):
        offset = 0
        for field, shape in fields.items():
            strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            slots.append(Slot(field, shape, strides, offset, exact))
            offset += -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT
        ends.append(offset)
    places = [place for slot in slots for place in _places(slot)]
    return Plan(tuple(slots), tuple(places), *ends)


_kept_layout = lru_cache(maxsize=256)(lay_out)


def layout_of(p: Parameters, dtype: torch.dtype) -> Plan:
    """The layout for a mixer and a compute dtype."""
    return _kept_layout(sizes_of(p), p.in_weight.dtype != dtype)


def buffers(p: Parameters, dtype: torch.dtype, layout: Plan) -> Buffers:
    """The two buffers, not filled."""
    exact = torch.promote_types(dtype, torch.float32)
    return p.in_weight.new_empty(layout.low, dtype=dtype), p.in_weight.new_empty(layout.exact, dtype=exact)


def copy_parameters(p: Parameters, layout: Plan, low: Tensor, exact: Tensor) -> None:
    """Fill the buffers, on any device and from any dtypes."""
    for source, place in zip(layout.sources(p), layout.places, strict=True):
        part = (exact if place.exact else low)[place.offset : place.offset + place.count]
        part.copy_(source.reshape(-1))
        if place.exponential:
            part.exp_().neg_()


def view(p: Parameters, layout: Plan, low: Tensor, exact: Tensor) -> Weights:
    """The weights in the buffers."""
    found: dict[str, Tensor | None] = {name: getattr(p, name) for name in ENDS}
    found["conv_bias"] = None
    for slot in layout.slots:
        found[slot.field] = (exact if slot.exact else low).as_strided(slot.shape, slot.strides, slot.offset)
    return Weights(**found)  # type: ignore[arg-type]
