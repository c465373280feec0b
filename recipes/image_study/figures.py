"""Figures of a study of image classifiers as PNG bytes: accuracy against epoch, and against measured speed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ssmvision.recipes.image_study.config import Entry
from ssmvision.recipes.image_study.labels import Point, add_labels
from ssmvision.recipes.image_study.summary import Study
from ssmvision.recipes.segmentation.figures import LINE_COLOURS, LINE_STYLES, to_png

__all__ = ["curves_figure", "curves_png", "speed_figure", "speed_png"]

MARKS = {
    "state space": ("o", "#0072B2"),
    "attention": ("s", "#D55E00"),
    "convolution": ("^", "#009E73"),
    "none": ("X", "#666666"),
}
BELOW = r"$\downarrow$"
# A legend with more entries has two columns.
LONGEST_LEGEND = 28


def curves_png(study: Study, dpi: int = 110) -> bytes:
    """`curves_figure` as a PNG file."""
    return to_png(curves_figure(study), dpi)


def curves_figure(study: Study) -> Figure:
    """Accuracy on the validation pictures against the epoch: each entry's mean over its seeds, the last best first."""
    figure = Figure(figsize=(8.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves = {entry.name: _mean_curve(study, entry.name) for entry in study.entries}
    ranked = sorted((name for name in curves if curves[name]), key=lambda name: -curves[name][-1][1])
    bottom = _first_shown([100 * value for r in study.results for _, value in r.curve])
    colours, styles = len(LINE_COLOURS), len(LINE_STYLES)
    for i, name in enumerate(ranked):
        epochs, means = zip(*curves[name], strict=True)
        style: Any = {"color": LINE_COLOURS[i % colours], "linestyle": LINE_STYLES[i // colours % styles]}
        repeated = i >= colours * styles  # told apart from the first ones by its points
        marker = "." if repeated or len(epochs) < 3 else ""
        label = name if max(means) >= bottom else f"{name} (below, {means[-1]:.1f})"
        axes.plot(epochs, means, label=label, linewidth=1.3, marker=marker, **style)
    _finish(axes, "epoch", "accuracy on the validation pictures, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if ranked:
        axes.set_ylim(bottom=bottom)
        place: Any = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "ncols": 1 + len(ranked) // LONGEST_LEGEND}
        axes.legend(frameon=False, fontsize=7, **place)
    return figure


def _mean_curve(study: Study, entry: str) -> list[tuple[float, float]]:
    """Epochs, and an entry's accuracies in percent as their mean over the seeds."""
    points: dict[float, list[float]] = {}
    for epoch, value in (point for r in study.results if r.entry == entry for point in r.curve):
        points.setdefault(epoch, []).append(100 * value)
    return [(epoch, statistics.fmean(points[epoch])) for epoch in sorted(points)]


def _first_shown(values: Sequence[float]) -> float:
    """The lower end of the curves' axis: the first epochs would leave no room for the rest."""
    if not values:
        return 0.0
    middle = statistics.median(values)
    return max(min(values), middle - 3 * (max(values) - middle))


def speed_png(study: Study, dpi: int = 130) -> bytes:
    """`speed_figure` as a PNG file."""
    return to_png(speed_figure(study, dpi), dpi)


def speed_figure(study: Study, dpi: int = 130) -> Figure:
    """Test accuracy against measured inference pictures a second: a point an entry, with its deviation over seeds.

    Entries far below the others stand at the lower edge with an arrow and their accuracy: the others keep their room.
    """
    shown = [entry for entry in study.entries if entry.name in study.costs and study.accuracies(entry.name)]
    spreads = {entry.name: _spread(study.accuracies(entry.name)) for entry in shown}
    least = _least_to_scale([mean for mean, _ in spreads.values()])
    more = 0.1 * max(0, len(shown) - 10)  # inches, for the names
    figure = Figure(figsize=(8.2 + more, 5.4 + more), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_xscale("log")
    _set_width(axes, [study.costs[entry.name].inference_per_s for entry in shown])
    edge = _set_height(axes, list(spreads.values()), least)
    points = []
    for entry in shown:
        mean, deviation = spreads[entry.name]
        at = study.costs[entry.name].inference_per_s
        mark, colour = MARKS[entry.group]
        if mean < least:
            axes.plot(at, edge, marker=BELOW, color=colour, markersize=10)
            points.append(Point(f"{entry.name} {mean:.1f}", at, edge, 0.0, colour))
        else:
            axes.errorbar(at, mean, deviation, fmt=mark, color=colour, markersize=6, elinewidth=1, capsize=2)
            points.append(Point(entry.name, at, mean, deviation, colour))
    device = ", ".join(dict.fromkeys(study.costs[entry.name].device for entry in shown))
    _finish(axes, f"inference, pictures per second ({device}; log scale)", "accuracy on the test pictures, %")
    _group_legend(axes, shown, any(mean < least for mean, _ in spreads.values()))
    add_labels(figure, axes, points)
    return figure


def _spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, which is 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _least_to_scale(means: Sequence[float]) -> float:
    """Entries below so many percent are far from the others: by thrice the middle half's spread, and by 3 points."""
    if not means:
        return 0.0
    low, high = np.percentile(means, (25, 75))
    return float(low - 3 * max(high - low, 1.0))


def _set_width(axes: Axes, speeds: Sequence[float]) -> None:
    """Sets the axis of speeds, with room for a name on either side; matplotlib's own margin fails for equal speeds."""
    if speeds:
        room = max((max(speeds) / min(speeds)) ** 0.12, 1.1)
        axes.set_xlim(min(speeds) / room, max(speeds) * room)


def _set_height(axes: Axes, spreads: Sequence[tuple[float, float]], least: float) -> float:
    """Sets the axis of accuracies to the entries drawn to scale; returns where those below it stand."""
    ends = [mean + sign * deviation for mean, deviation in spreads if mean >= least for sign in (-1, 1)] or [0.0, 1.0]
    room = 0.08 * max(max(ends) - min(ends), 0.1)
    below = 2 * room if any(mean < least for mean, _ in spreads) else room
    axes.set_ylim(min(ends) - below, max(ends) + room)
    return min(ends) - below + room / 2


def _group_legend(axes: Axes, entries: Sequence[Entry], below: bool) -> None:
    used = [(*MARKS[group], group) for group in MARKS if any(entry.group == group for entry in entries)]
    used += [(BELOW, "black", "below the scale")] * below
    handles = [Line2D([], [], marker=mark, color=colour, linestyle="", label=text) for mark, colour, text in used]
    place: Any = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": len(handles)}
    axes.legend(handles=handles, frameon=False, fontsize=8, **place)


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
