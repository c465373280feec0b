"""Stacking and casting a mixer's parameters: two buffers, views into them, and where each parameter goes.

One buffer holds the projections in the compute dtype, the other everything that the scan and the convolution want in at
least float32. Filling both takes one kernel on CUDA and one copy a parameter elsewhere. That kernel is short enough to
run at every call: packed weights that outlive a call would miss changes made through `.data`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.mamba_mixer.args import Parameters, Sizes, Weights, sizes_of

__all__ = ["Buffers", "Place", "Plan", "buffers", "copy_parameters", "lay_out", "layout_of", "padded_rank", "view"]

ALIGNMENT = 16  # elements, so that every part starts at a multiple of 32 bytes
# Parameters that need no stacking: taken as they are where they have the compute dtype already.
ENDS = ("in_weight", "in_bias", "out_weight", "out_bias")
FIELDS = Weights._fields


class Slot(NamedTuple):
    """A part of a buffer: the field of `Weights` that it holds, its shape, strides and first element."""

    field: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    exact: bool


class Place(NamedTuple):
    """Where a part of a parameter goes.

    Attributes:
        field, route: the parameter: a field of `Weights`, and which of its directions (0 for a projection).
        start, size: its elements.
        exact: into the exact buffer; else into the low one.
        offset: first element there.
        row, stride: rows of `row` elements go to places `stride` elements apart; 0 for all in one piece.
    """

    field: str
    route: int
    start: int
    size: int
    exact: bool
    offset: int
    row: int = 0
    stride: int = 0

    @property
    def exponential(self) -> bool:
        """A_log becomes -exp(A_log)."""
        return self.field == "A"


class Plan(NamedTuple):
    """Layout of both buffers: their parts, the place of every parameter, and the elements of each buffer."""

    slots: tuple[Slot, ...]
    places: tuple[Place, ...]
    low: int
    exact: int
    padded: bool

    def sources(self, p: Parameters) -> list[Tensor]:
        """The parameters, in the order of `places`."""
        fields: dict[str, Any] = dict(zip(FIELDS, p, strict=True))
        return [fields[q.field] if q.field in ENDS else fields[q.field][q.route] for q in self.places]


Buffers = tuple[Tensor, Tensor]


def padded_rank(rank: int, dtype: torch.dtype) -> int:
    """Columns that the step sizes' low rank takes in x_dbl, zeros at the end.

    GEMMs of 2-byte elements want rows that start at multiples of 16 bytes and sums of whole steps of 16: with rank 12,
    a quarter of vim_tiny's inference went to slow ones; with rank 24, they took a third longer than with 32. Those of
    4-byte elements want such rows too, and so does the scan for its B and C.
    """
    multiple = {2: 16, 4: 4}.get(dtype.itemsize, 1)
    return -(-rank // multiple) * multiple


def _shapes(s: Sizes, rank: int, cast: bool) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Fields of the low and of the exact buffer."""
    low: dict[str, tuple[int, ...]] = {}
    if cast:
        low = {"in_weight": (2 * s.inner, s.dim), "out_weight": (s.dim, s.inner)}
        low |= {"in_bias": (2 * s.inner,), "out_bias": (s.dim,)} if s.bias else {}
    low |= {"x_weight": (s.routes, rank + 2 * s.state, s.inner), "dt_weight": (s.routes, s.inner, rank)}
    per_channel = (s.routes, s.inner)
    exact = {"conv_weight": (*per_channel, s.taps), "A": (*per_channel, s.state), "dt_bias": per_channel}
    return low, exact | {"D": per_channel} | ({"conv_bias": per_channel} if s.conv_bias else {})


def _places(slot: Slot, s: Sizes, rank: int) -> list[Place]:
    field, offset, step = slot.field, slot.offset, slot.strides[0]
    if field in ENDS:
        return [Place(field, 0, 0, math.prod(slot.shape), slot.exact, offset)]
    found = []
    for k in range(slot.shape[0]):
        start = offset + k * step
        if field == "dt_weight" and rank != s.rank:
            found.append(Place(field, k, 0, s.inner * s.rank, slot.exact, start, s.rank, rank))
        elif field == "x_weight" and rank != s.rank:
            low, rest = s.rank * s.inner, 2 * s.state * s.inner
            found.append(Place(field, k, 0, low, slot.exact, start))
            found.append(Place(field, k, low, rest, slot.exact, start + rank * s.inner))
        else:
            found.append(Place(field, k, 0, step, slot.exact, start))
    return found


def lay_out(s: Sizes, rank: int, cast: bool) -> Plan:
    """Lay out the buffers.

    Args:
        s: of the mixer.
        rank: `padded_rank` of its own.
        cast: the projections' parameters have another dtype than the compute dtype.
    """
    slots: list[Slot] = []
    ends = []
    for fields, exact in zip(_shapes(s, rank, cast), (False, True), strict=True):
        offset = 0
        for field, shape in fields.items():
            strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            slots.append(Slot(field, shape, strides, offset, exact))
            offset += -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT
        ends.append(offset)
    places = [place for slot in slots for place in _places(slot, s, rank)]
    return Plan(tuple(slots), tuple(places), low=ends[0], exact=ends[1], padded=rank != s.rank)


_kept_layout = lru_cache(maxsize=256)(lay_out)


def layout_of(p: Parameters, dtype: torch.dtype) -> Plan:
    """The layout for a mixer and a compute dtype."""
    s = sizes_of(p)
    return _kept_layout(s, padded_rank(s.rank, dtype), p.in_weight.dtype != dtype)


def buffers(p: Parameters, dtype: torch.dtype, layout: Plan) -> Buffers:
    """The two buffers: zeros in the padding, else not filled."""
    low = (p.in_weight.new_zeros if layout.padded else p.in_weight.new_empty)(layout.low, dtype=dtype)
    return low, p.in_weight.new_empty(layout.exact, dtype=torch.promote_types(dtype, torch.float32))


def copy_parameters(p: Parameters, layout: Plan, low: Tensor, exact: Tensor) -> None:
    """Fill the buffers, on any device and from any dtypes."""
    for source, place in zip(layout.sources(p), layout.places, strict=True):
        part = source.reshape(-1)[place.start : place.start + place.size]
        row = place.row or place.size
        stride = place.stride or row
        rows = place.size // row
        goal = (exact if place.exact else low).as_strided((rows, row), (stride, 1), place.offset)
        goal.copy_(part.view(rows, row))
        if place.exponential:
            goal.exp_().neg_()


def view(p: Parameters, layout: Plan, low: Tensor, exact: Tensor) -> Weights:
    """The weights in the buffers."""
    found: dict[str, Tensor | None] = {name: getattr(p, name) for name in ENDS}
    found["conv_bias"] = None
    for slot in layout.slots:
        found[slot.field] = (exact if slot.exact else low).as_strided(slot.shape, slot.strides, slot.offset)
    return Weights(**found)  # type: ignore[arg-type]
