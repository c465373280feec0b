"""Figures of a report on trainings, as PNG bytes: outlines through the largest error, distributions, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import ndimage

from ssmvision.recipes.evaluation.components import NEIGHBOURS
from ssmvision.recipes.evaluation.pooling import Pool
from ssmvision.recipes.segmentation.figures import (
    LINE_COLOURS,
    LINE_STYLES,
    PALETTE,
    PLANES,
    Plane,
    cut_plane,
    name_sides,
    to_png,
    to_ras,
)

__all__ = ["contours_png", "distributions_png", "largest_error", "training_png"]

Volume = NDArray[Any]
DPI = 110
PANELS = (("dice", "Dice"), ("nsd", "NSD"), ("hd95_mm", "HD95, mm"))


def contours_png(
    image: Volume, affine: NDArray[np.float64], reference: Volume, prediction: Volume, classes: Mapping[str, int]
) -> bytes:
    """Axial, coronal and sagittal slices through the largest error, with the outlines of both label maps.

    The largest error is the largest connected set of voxels whose labels differ; in each plane, the slice with most of
    it is shown. Radiological convention; an axis of fewer than two voxels has no slices along it.

    Args:
        image: intensities (X, Y, Z) in any orientation.
        affine: (4, 4), voxel index to RAS+ mm, of all three.
        reference, prediction: label maps (X, Y, Z).
        classes: label names and ids; id 0 is not drawn.

    Raises:
        ValueError: the shapes differ.
    """
    if not image.shape == reference.shape == prediction.shape:
        shapes = f"{image.shape}, {reference.shape} and {prediction.shape}"
        raise ValueError(f"image, reference and prediction have the shapes {shapes}; expected equal ones")
    volume, spacing = to_ras(image, affine)
    truth, found = (to_ras(labels, affine)[0] for labels in (reference, prediction))
    error = largest_error(truth, found)
    size_mm = [n * s for n, s in zip(volume.shape, spacing, strict=True)]
    planes = [plane for plane in PLANES if min(volume.shape[plane.across], volume.shape[plane.up]) > 1]
    widths = [size_mm[plane.across] for plane in planes]
    height = max(size_mm[plane.up] for plane in planes)
    figure = Figure(figsize=(10, max(2.4, 10 * height / sum(widths)) + 0.6), layout=ConstrainedLayoutEngine(h_pad=0.1))
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(planes), squeeze=False, width_ratios=widths)[0]
    shades = np.percentile(volume, (0.5, 99.5))
    for axes, plane in zip(grid, planes, strict=True):
        index = int(error.sum(axis=tuple(a for a in range(3) if a != plane.axis)).argmax())
        _draw_slice(axes, cut_plane(volume, plane, index), plane, size_mm, shades)
        for labels, style in ((truth, "solid"), (found, "dashed")):
            cut = cut_plane(labels, plane, index)
            for value in (value for value in classes.values() if value != 0):
                _outline(axes, cut == value, plane, size_mm, PALETTE[(value - 1) % len(PALETTE)], style)
        axes.set_title(plane.name, fontsize=9)
    _legend(figure, [name for name, value in classes.items() if value], classes)
    return to_png(figure, DPI)


def largest_error(truth: Volume, found: Volume) -> NDArray[np.bool_]:
    """The largest connected set of wrong voxels; where there are none, what is labelled."""
    wrong = truth != found
    if not wrong.any():
        return np.asarray(truth > 0)
    parts, _ = ndimage.label(wrong, NEIGHBOURS)
    return np.asarray(parts == 1 + int(np.bincount(parts.ravel())[1:].argmax()))


def _extent(plane: Plane, size_mm: Sequence[float]) -> tuple[float, float, float, float]:
    half_width, half_height = size_mm[plane.across] / 2, size_mm[plane.up] / 2
    return -half_width, half_width, -half_height, half_height


def _draw_slice(
    axes: Axes, picture: Volume, plane: Plane, size_mm: Sequence[float], shades: Sequence[float] | NDArray[np.float64]
) -> None:
    extent = _extent(plane, size_mm)
    axes.imshow(picture, cmap="gray", vmin=shades[0], vmax=shades[1], extent=extent, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    name_sides(axes, plane, size_mm)


def _outline(
    axes: Axes, mask: NDArray[np.bool_], plane: Plane, size_mm: Sequence[float], colour: str, style: str
) -> None:
    """The mask's outline, also where it ends at the edge of the picture."""
    if not mask.any():
        return
    left, right, bottom, top = _extent(plane, size_mm)
    rows, columns = mask.shape
    step_x, step_y = (right - left) / columns, (top - bottom) / rows
    x = left + step_x * (np.arange(columns + 2) - 0.5)
    y = top - step_y * (np.arange(rows + 2) - 0.5)
    # A dark line below keeps the outline visible on bright voxels.
    for colour_, width in (("black", 2.4), (colour, 1.4)):
        axes.contour(
            x, y, np.pad(mask, 1).astype(float), levels=[0.5], colors=colour_, linewidths=width, linestyles=style
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)


def _legend(figure: Figure, names: Sequence[str], classes: Mapping[str, int]) -> None:
    handles = [Line2D([], [], color=PALETTE[(classes[name] - 1) % len(PALETTE)], label=name) for name in names]
    handles.append(Line2D([], [], color="0.3", linestyle="solid", label="reference"))
    handles.append(Line2D([], [], color="0.3", linestyle="dashed", label="prediction"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), frameon=False, fontsize=9)


def distributions_png(pool: Pool) -> bytes:
    """Dice, NSD and HD95 of every case: a point each and, for more than two, a box per method and class."""
    rows = [(method, label) for label in pool.labels for method in pool.methods]
    figure = Figure(figsize=(11, 1.2 + 0.4 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (metric, title) in zip(figure.subplots(1, 3, sharey=True), PANELS, strict=True):
        for place, (method, label) in enumerate(rows):
            counted = [r.score for r in pool.of(method, label) if r.score.state != "both_empty"]
            values = [float(getattr(score, metric)) for score in counted]
            _scatter(axes, place, values, _line_colour(pool.methods.index(method)))
        axes.set_yticks(range(len(rows)), [label if len(pool.methods) == 1 else f"{label}, {m}" for m, label in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        _tidy(axes, title)
        if metric != "hd95_mm":
            axes.set_xlim(-0.02, 1.02)
    return to_png(figure, DPI)


def _line_colour(place: int) -> str:
    return LINE_COLOURS[place % len(LINE_COLOURS)]


def _line(place: int) -> dict[str, Any]:
    """A colour for each method; when all are taken, the next style of line."""
    style = LINE_STYLES[place // len(LINE_COLOURS) % len(LINE_STYLES)]
    return {"color": _line_colour(place), "linestyle": style}


def _scatter(axes: Axes, place: int, values: Sequence[float], colour: str) -> None:
    # Spread by rank instead of by chance, so that equal scores give equal bytes.
    offsets = [0.2 * math.sin(2.4 * i) for i in range(len(values))]
    axes.plot(values, np.add(place, offsets), ".", color=colour, markersize=6, alpha=0.8)
    if len(values) > 2:
        box = axes.boxplot([list(values)], positions=[place], orientation="horizontal", widths=0.6, showfliers=False)
        for lines in box.values():
            for line in lines:
                line.set(color="0.35", linewidth=1)


def _tidy(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def training_png(histories: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> bytes:
    """Training loss and mean validation Dice by epoch: a line for each training, coloured by method.

    Args:
        histories: method and rows of metrics.csv of each training.

    Raises:
        ValueError: no training has a row.
    """
    if not any(rows for _, rows in histories):
        raise ValueError("no epoch to draw; give the history of at least one training")
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    methods = list(dict.fromkeys(method for method, _ in histories))
    panels = (("train_loss", "Training loss"), ("val_dice", "Dice of held-out cases, while training"))
    for axes, (column, title) in zip(figure.subplots(1, 2), panels, strict=True):
        for method, rows in histories:
            points = [(row["epoch"], row[column]) for row in rows if not math.isnan(row.get(column, math.nan))]
            marker = "o" if len(points) < 25 else ""
            x, y = zip(*points, strict=True) if points else ((), ())
            axes.plot(x, y, linewidth=1.2, alpha=0.8, marker=marker, markersize=3, **_line(methods.index(method)))
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _tidy(axes, title)
    handles = [Line2D([], [], **_line(place)) for place in range(len(methods))]
    figure.legend(handles, methods, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return to_png(figure, DPI)
