"""Routes as equal lines of positions, cut into the segments that the CUDA kernels' lanes walk.

A lane walks one segment of a line, so that neighbouring steps are a constant distance apart. In shared memory, rows of
a map are an odd number of positions apart: neighbouring segments of a column meet different banks then.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ssmvision.kernels.routes import Grid, route_index

__all__ = ["Lines", "lines_of", "map_slots", "saved_states", "segment_steps"]

# Steps of a segment, by states: what the backward's registers hold at once, or fewer where lines are cut better.
STEPS = {1: (7, 6, 5, 4), 2: (3, 2), 4: (2,)}
EXTRA_STEPS = 3.0  # what joining a segment to its neighbours costs, in steps
EVEN_STEP = 0.3  # what a step costs more where neighbouring segments meet the same banks


class Lines(NamedTuple):
    """Step i of line l is at position base + l line + i step of the grid, and likewise among the map's slots.

    Attributes:
        number, length: how many, and positions of each.
        step, line, base: in the grid.
        slot_step, slot_line, slot_base: in shared memory.
    """

    number: int
    length: int
    step: int
    line: int
    base: int
    slot_step: int
    slot_line: int
    slot_base: int


def _pitch(grid: Grid) -> int:
    return grid[1] | 1 if len(grid) == 2 else 1


def map_slots(grid: Grid) -> int:
    """Slots of a map in shared memory."""
    return grid[0] * _pitch(grid) if len(grid) == 2 else int(np.prod(grid))


@lru_cache(maxsize=512)
def lines_of(name: str, grid: Grid) -> Lines | None:
    """A route's lines; None where it skips positions or is not made of equal lines."""
    index = route_index(name, grid).astype(np.int64)
    total = len(index)
    if total == 0 or total != int(np.prod(grid)):
        return None
    gaps = np.diff(index)
    step = int(gaps[0]) if total > 1 else 0
    breaks = np.flatnonzero(gaps != step)
    length = int(breaks[0]) + 1 if len(breaks) else total
    if len(grid) == 2 and abs(step) == 1 and length == total:
        length = grid[1]  # rows in sequence: one line among the grid's positions, but not among the slots
    slots = index // grid[1] * _pitch(grid) + index % grid[1] if len(grid) == 2 else index
    at, between = np.arange(total) % length, np.arange(total) // length
    found: list[int] = []
    for places in (index, slots):
        base, one = int(places[0]), int(places[1] - places[0]) if length > 1 else 0
        line = int(places[length] - base) if length < total else 0
        if not np.array_equal(places, base + at * one + between * line):
            return None
        found += [one, line, base]
    return Lines(total // length, length, *found)


@lru_cache(maxsize=512)
def segment_steps(routes: tuple[str, ...], grid: Grid, states: int) -> int:
    """Steps of a segment, such that as few as possible are wasted at the lines' ends; 0 where there are no lines."""
    lines = [lines_of(name, grid) for name in routes]
    known = [line for line in lines if line is not None]
    if len(known) < len(lines) or states not in STEPS:
        return 0

    def cost(steps: int) -> float:
        each = steps + EXTRA_STEPS + (0.0 if steps % 2 else EVEN_STEP * steps)
        return sum(line.number * -(-line.length // steps) * each for line in known)

    return min(STEPS[states], key=cost)


def saved_states(routes: tuple[str, ...], grid: Grid, states: int) -> int:
    """States that a training forward saves of each route, one before every segment; 0 where there are no lines."""
    steps = segment_steps(routes, grid, states)
    if not steps:
        return 0
    lines = (lines_of(name, grid) for name in routes)
    return max(line.number * -(-line.length // steps) for line in lines if line is not None)
