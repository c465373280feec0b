"""Names beside the points of a chart, each where it covers no other name, no point and no error bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

__all__ = ["Point", "add_labels"]

FONT_SIZE = 8
# Distances in typographical points: between a point and its name, of what must stay free around a point, and so on.
NEAR, DISTANCES = 9.0, (6.0, 9.0, 13.0, 18.0, 24.0, 31.0, 40.0, 50.0, 62.0, 76.0, 92.0, 110.0)
MARKER, CAP, AROUND, LINE, CLEAR = 4.0, 2.5, 1.0, 0.75, 5.0
ANGLES, STEPS, SWEEPS = 32, 8, 8
# What a name that covers something, a line that crosses something and a name near another point cost, as lengths of
# its line.
COVERS, CROSSES, CONFUSES = 10_000.0, 25.0, 8.0
# Left, bottom, right and top in pixels: (..., 4).
Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A point of the chart.

    Args:
        name: to be written beside it.
        x, y: in the axes' units.
        deviation: half the length of its error bar, 0 without.
        colour: of its name.
    """

    name: str
    x: float
    y: float
    deviation: float
    colour: str


@dataclass(frozen=True)
class _Places:
    """Where a name may stand: boxes (C, 4), lines to the point as small boxes (C, STEPS, 4), and their costs (C,)."""

    boxes: Boxes
    lines: Boxes
    costs: NDArray[np.float64]


def add_labels(figure: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Writes the names inside the axes, whose limits must be final; a line joins those that stand apart.

    Each name takes the cheapest of its places given all the others', in turns until none moves.
    """
    figure.draw_without_rendering()  # the layout is final from here
    scale = figure.dpi / 72
    centres = np.array([axes.transData.transform((p.x, p.y)) for p in points]).reshape(-1, 2)
    marks = _around(centres, MARKER * scale)
    bars = [axes.transData.transform([(p.x, p.y - p.deviation), (p.x, p.y + p.deviation)]) for p in points]
    caps = np.array([(x - CAP * scale, low, x + CAP * scale, high) for (x, low), (_, high) in bars]).reshape(-1, 4)
    free = np.array(axes.bbox.extents)
    places = []
    for i, point in enumerate(points):
        # Its line may touch its own point and error bar, its name may not.
        others = np.arange(len(points)) != i
        rest = np.concatenate([marks[others], caps[others]])
        places.append(_places(centres[i], _size(axes, point.name), scale, np.concatenate([marks, caps]), rest, free))
    for point, centre, box in zip(points, centres, _choose(places), strict=True):
        _write(axes, point, centre, box, scale)


def _size(axes: Axes, name: str) -> tuple[float, float]:
    """Width and height of a written name in pixels."""
    text = axes.text(0, 0, name, fontsize=FONT_SIZE, transform=None)
    extent = text.get_window_extent()
    text.remove()
    return extent.width, extent.height


def _places(
    centre: NDArray[np.float64], size: tuple[float, float], scale: float, fixed: Boxes, others: Boxes, free: Boxes
) -> _Places:
    """All places around a point, with what they cost for their distance and for what is drawn there anyway.

    Args:
        centre: (2,), the point in pixels.
        size: width and height of the name in pixels.
        scale: pixels of a typographical point.
        fixed: (N, 4), which the name must not cover.
        others: (M, 4), which its line should not cross.
        free: (4,), the axes, which the name must not leave.
    """
    turns = np.arange(ANGLES) * 2 * math.pi / ANGLES
    directions = np.stack([np.cos(turns), np.sin(turns)], 1)
    lengths = np.repeat(DISTANCES, ANGLES)
    towards = np.tile(directions, (len(DISTANCES), 1))
    half = np.array(size) / 2 + AROUND * scale
    middles = centre + lengths[:, None] * scale * towards + np.clip(1.5 * towards, -1, 1) * half
    boxes = np.concatenate([middles - half, middles + half], 1)
    ends = np.clip(centre, boxes[:, :2], boxes[:, 2:])
    parts = np.linspace(0, 1, STEPS, endpoint=False)[:, None]
    lines = _around(ends[:, None] + parts * (centre - ends)[:, None], LINE * scale)
    outside = (boxes[:, :2] < free[:2]).any(1) | (boxes[:, 2:] > free[2:]).any(1)
    costs = lengths + 2 * (1 - towards[:, 0])  # where all is free, to the right of the point
    costs += COVERS * (outside + _met(boxes, fixed)) + CROSSES * (_met(lines, others) > 0).sum(1)
    costs += CONFUSES * _met(boxes + CLEAR * scale * np.array([-1, -1, 1, 1]), others)
    return _Places(boxes, lines, costs)


def _choose(places: Sequence[_Places]) -> list[Boxes]:
    """The box of each name."""
    chosen: dict[int, int] = {}
    # Names with the fewest good places choose first.
    order = sorted(range(len(places)), key=lambda i: -float(np.sort(places[i].costs)[: 2 * ANGLES].sum()))
    for _ in range(SWEEPS):
        before = dict(chosen)
        for i in order:
            others = [(places[j].boxes[k], places[j].lines[k]) for j, k in chosen.items() if j != i]
            boxes = np.array([box for box, _ in others]).reshape(-1, 4)
            lines = np.array([line for _, line in others]).reshape(-1, 4)
            mine = places[i]
            covered = _met(mine.boxes, boxes) + (_met(mine.boxes, lines) > 0) + (_met(mine.lines, boxes) > 0).any(1)
            crossed = (_met(mine.lines, lines) > 0).any(1)
            chosen[i] = int((mine.costs + COVERS * covered + 4 * CROSSES * crossed).argmin())
        if chosen == before:
            break
    return [places[i].boxes[chosen[i]] for i in range(len(places))]


def _met(boxes: Boxes, others: Boxes) -> NDArray[np.int64]:
    """How many of the others (N, 4) each of the boxes (..., 4) overlaps: (...)."""
    boxes = boxes[..., None, :]
    overlap = (boxes[..., :2] < others[:, 2:]).all(-1) & (others[:, :2] < boxes[..., 2:]).all(-1)
    return np.asarray(overlap.sum(-1))


def _around(centres: NDArray[np.float64], half: float) -> Boxes:
    """Squares (..., 4) of twice `half` around points (..., 2)."""
    return np.concatenate([centres - half, centres + half], -1)


def _write(axes: Axes, point: Point, centre: NDArray[np.float64], box: Boxes, scale: float) -> None:
    """The name in its box, joined to its point unless it stands right beside it."""
    end = np.clip(centre, box[:2], box[2:])
    apart = bool(np.linalg.norm(end - centre) > NEAR * scale)
    left, bottom = (end - box[:2]) / (box[2:] - box[:2])
    line = {"arrowstyle": "-", "color": point.colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": MARKER}
    axes.annotate(
        point.name,
        (point.x, point.y),
        tuple((box[:2] - centre) / scale + AROUND),
        textcoords="offset points",
        fontsize=FONT_SIZE,
        color=point.colour,
        ha="left",
        va="bottom",
        arrowprops={**line, "relpos": (float(left), float(bottom))} if apart else None,
    )
