"""Stacking and casting a mixer's parameters: two buffers, views into them, and where each parameter goes.

One buffer holds the projections in the compute dtype, the other everything that the scan and the convolution want in at
least float32. Filling both takes one kernel on CUDA and one copy a parameter elsewhere. That kernel is short enough to
run at every call: packed weights that outlive a call would miss changes made through `.data`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.mamba_mixer.args import Parameters, Sizes, Weights, sizes_of

__all__ = ["Buffers", "Entry", "Plan", "buffers", "copy_entries", "entries", "lay_out", "pack", "view"]

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


class Plan(NamedTuple):
    """Layout of both buffers, and the elements of each."""

    slots: tuple[Slot, ...]
    low: int
    exact: int


class Entry(NamedTuple):
    """One parameter's way: into the exact buffer or the low one, from an element on; A_log becomes -exp(A_log)."""

    source: Tensor
    exact: bool
    offset: int
    exponential: bool


Buffers = tuple[Tensor, Tensor]
Fill = Callable[[list[Entry], Tensor, Tensor], None]


def lay_out(s: Sizes, cast: bool) -> Plan:
    """Lay out the buffers.

    Args:
        s: of the mixer.
        cast: the projections' parameters have another dtype than the compute dtype.
    """
    low: dict[str, tuple[int, ...]] = {"in_weight": (2 * s.inner, s.dim), "out_weight": (s.dim, s.inner)}
    if s.bias:
        low |= {"in_bias": (2 * s.inner,), "out_bias": (s.dim,)}
    if not cast:
        low = {}
    low |= {"x_weight": (s.routes, s.rank + 2 * s.state, s.inner), "dt_weight": (s.routes, s.inner, s.rank)}
    per_channel = (s.routes, s.inner)
    exact = {"conv_weight": (*per_channel, s.taps), "A": (*per_channel, s.state), "dt_bias": per_channel}
    exact |= {"D": per_channel} | ({"conv_bias": per_channel} if s.conv_bias else {})
    slots, ends = [], []
    for parts, is_exact in ((low, False), (exact, True)):
        offset = 0
        for field, shape in parts.items():
            strides = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
            slots.append(Slot(field, shape, strides, offset, is_exact))
            offset += -(-math.prod(shape) // ALIGNMENT) * ALIGNMENT
        ends.append(offset)
    return Plan(tuple(slots), *ends)


_kept_layout = lru_cache(maxsize=256)(lay_out)


def _layout_of(p: Parameters, dtype: torch.dtype) -> Plan:
    return _kept_layout(sizes_of(p), p.in_weight.dtype != dtype)


def entries(p: Parameters, layout: Plan) -> Iterator[Entry]:
    """Every parameter that has to be moved, and its place."""
    for slot in layout.slots:
        if slot.field in ENDS:
            yield Entry(getattr(p, slot.field), slot.exact, slot.offset, False)
            continue
        is_a = slot.field == "A"
        for k, source in enumerate(getattr(p, "A_log" if is_a else slot.field)):
            yield Entry(source, slot.exact, slot.offset + k * slot.strides[0], is_a)


def copy_entries(todo: list[Entry], low: Tensor, exact: Tensor) -> None:
    """Fill the buffers, on any device and from any dtypes."""
    for entry in todo:
        place = (exact if entry.exact else low)[entry.offset : entry.offset + entry.source.numel()]
        place.copy_(entry.source.reshape(-1))
        if entry.exponential:
            place.exp_().neg_()


def buffers(p: Parameters, dtype: torch.dtype, layout: Plan) -> Buffers:
    """The two buffers, not filled."""
    exact = torch.promote_types(dtype, torch.float32)
    return p.in_weight.new_empty(layout.low, dtype=dtype), p.in_weight.new_empty(layout.exact, dtype=exact)


def pack(p: Parameters, dtype: torch.dtype, fill: Fill) -> Buffers:
    """Stack and cast: the projections to `dtype`, the rest to at least float32."""
    layout = _layout_of(p, dtype)
    low, exact = buffers(p, dtype, layout)
    fill(list(entries(p, layout)), low, exact)
    return low, exact


def view(p: Parameters, dtype: torch.dtype, low: Tensor, exact: Tensor) -> Weights:
    """The weights in the buffers."""
    found: dict[str, Tensor | None] = {name: getattr(p, name) for name in ENDS}
    found["conv_bias"] = None
    for slot in _layout_of(p, dtype).slots:
        found[slot.field] = (exact if slot.exact else low).as_strided(slot.shape, slot.strides, slot.offset)
    return Weights(**found)  # type: ignore[arg-type]
