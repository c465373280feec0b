"""Figures of a study as PNG bytes: training curves, and the best and worst cases side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssmvision.recipes.segmentation.figures import LINE_COLOURS, LINE_STYLES, to_png, to_ras

__all__ = ["Shown", "cases_figure", "cases_png", "curves_figure", "mean_curves"]

MARGIN_MM = 20.0
# Of the cases' figure: columns, and characters of a name on one line.
MOST_COLUMNS, LONGEST_TITLE = 8, 22
Rows = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Shown:
    """One case of the figure.

    Args:
        title: before the row.
        image: first channel (X, Y, Z).
        affine: (4, 4), voxel index to mm (RAS+).
        reference: label map on the same grid.
        predictions: label maps by network.
        notes: a line below each network's name, such as its Dice.
    """

    title: str
    image: NDArray[np.float32]
    affine: NDArray[np.float64]
    reference: NDArray[np.integer]
    predictions: Mapping[str, NDArray[np.integer]]
    notes: Mapping[str, str]


def mean_curves(histories: Mapping[str, Sequence[Rows]]) -> bytes:
    """`curves_figure` as a PNG file."""
    return to_png(curves_figure(histories), 110)


def curves_figure(histories: Mapping[str, Sequence[Rows]]) -> Figure:
    """Training loss and Dice of the cases held out against the step, each network's mean over its trainings.

    A panel with a single step is no curve: the loss alone is shown if there was one validation.

    Args:
        histories: per network, the rows of metrics.csv of every training.
    """
    panels = {
        title: {name: _mean_curve(runs, column) for name, runs in histories.items()}
        for column, title in (("train_loss", "training loss"), ("val_dice", "Dice of the cases held out"))
    }
    told = [title for title, curves in panels.items() if len({x for curve in curves.values() for x, _ in curve}) > 1]
    told = told or list(panels)[:1]
    figure = Figure(figsize=(4.6 * len(told) + 2.4, max(3.2, 0.2 * len(histories))), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title in zip(figure.subplots(1, len(told), squeeze=False)[0], told, strict=True):
        for i, (name, curve) in enumerate(panels[title].items()):
            # Colours and styles both change from line to line; after a round of both, the styles move on by one.
            turn = i + i // math.lcm(len(LINE_COLOURS), len(LINE_STYLES))
            style: Any = {
                "color": LINE_COLOURS[i % len(LINE_COLOURS)],
                "linestyle": LINE_STYLES[turn % len(LINE_STYLES)],
            }
            marker = "o" if len(curve) < 25 else ""
            axes.plot([x for x, _ in curve], [y for _, y in curve], label=name, marker=marker, markersize=3, **style)
        axes.set_xlabel("step")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=figure.axes[0].get_lines(), loc="outside right center", frameon=False, fontsize=8)
    return figure


def _mean_curve(runs: Sequence[Rows], column: str) -> list[tuple[float, float]]:
    """Steps, and the mean of a column over the trainings that have it there."""
    points: dict[float, list[float]] = {}
    for row in (row for rows in runs for row in rows):
        if not math.isnan(row.get(column, math.nan)):
            points.setdefault(row["step"], []).append(row[column])
    return [(step, float(np.mean(points[step]))) for step in sorted(points)]


def cases_png(cases: Sequence[Shown], classes: int, dpi: int = 80) -> bytes:
    """`cases_figure` as a PNG file."""
    return to_png(cases_figure(cases, classes), dpi)


def cases_figure(cases: Sequence[Shown], classes: int) -> Figure:
    """Each case's axial slice with most of the reference: plain, with the reference, with each prediction.

    Where the reference is empty, it is the slice with most of the predictions. Radiological convention: the patient's
    right is on the viewer's left. Pixels keep the voxel's proportions. A case takes as many rows as its pictures need.

    Args:
        cases: all have the same networks.
        classes: labels without background.
    """
    pictures = 2 + len(cases[0].predictions)
    rows = math.ceil(pictures / MOST_COLUMNS)
    columns = math.ceil(pictures / rows)
    figure = Figure(figsize=(1.9 * columns, 2.3 * rows * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows * len(cases), columns, squeeze=False)
    for i, case in enumerate(cases):
        _draw_case(grid[i * rows : (i + 1) * rows], case, classes)
    return figure


def _draw_case(grid: NDArray[Any], case: Shown, classes: int) -> None:
    """Fills a case's panels (rows, columns) row by row; those left over stay empty."""
    image, spacing = to_ras(case.image, case.affine)
    reference = to_ras(case.reference, case.affine)[0]
    found = {name: to_ras(labels, case.affine)[0] for name, labels in case.predictions.items()}
    # A case may be among the worst because nothing is to be found in it.
    labelled = reference if reference.any() else np.add.reduce([labels > 0 for labels in found.values()])
    index = int((labelled > 0).sum((0, 1)).argmax())
    box = _box(labelled[..., index], spacing)
    drawn: list[tuple[str, Any]] = [("image", None), ("reference", reference)]
    drawn += [(f"{_wrapped(name)}\n{case.notes[name]}", labels) for name, labels in found.items()]
    for panel, (title, labels) in zip(grid.flat, drawn, strict=False):
        cut = None if labels is None else labels[..., index][box]
        _draw(panel, image[..., index][box], cut, classes, spacing[1] / spacing[0])
        panel.set_title(title, fontsize=9)
    for panel in grid.flat[len(drawn) :]:
        panel.set_axis_off()
    for panel in grid[:, 0]:
        panel.set_ylabel(case.title, fontsize=9)


def _wrapped(name: str) -> str:
    """A name too long for its column on two lines."""
    return name if len(name) <= LONGEST_TITLE else name.replace("/", "/\n", 1)


def _box(mask: NDArray[np.integer], spacing: Sequence[float]) -> tuple[slice, slice]:
    """The labelled part of a slice (X, Y) with a margin; all of a slice without labels."""
    inside = np.argwhere(mask > 0)
    if not len(inside):
        return slice(None), slice(None)
    margin = [math.ceil(MARGIN_MM / edge) for edge in spacing[:2]]
    x, y = (
        slice(max(int(low) - m, 0), int(high) + m + 1)
        for low, high, m in zip(inside.min(0), inside.max(0), margin, strict=True)
    )
    return x, y


def _draw(
    axes: Axes, image: NDArray[np.float32], labels: NDArray[np.integer] | None, classes: int, aspect: float
) -> None:
    low, high = np.percentile(image, (1, 99))
    axes.imshow(image.T[::-1, ::-1], cmap="gray", vmin=low, vmax=high, aspect=aspect)
    if labels is not None:
        shown = np.ma.masked_equal(labels.T[::-1, ::-1], 0)
        colours: Any = {"cmap": "tab20", "vmin": 0.5, "vmax": 20.5} if classes > 1 else {"cmap": "autumn"}
        axes.imshow(shown, alpha=0.55, interpolation="nearest", aspect=aspect, **colours)
    axes.set_xticks([])
    axes.set_yticks([])
