"""Figures of a study of image classifiers as PNG bytes: accuracy against epoch, and against measured speed."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ssmvision.recipes.image_study.summary import Study
from ssmvision.recipes.segmentation.figures import LINE_COLOURS, LINE_STYLES, to_png

__all__ = ["curves_png", "speed_png"]

MARKS = {
    "state space": ("o", "#0072B2"),
    "attention": ("s", "#D55E00"),
    "convolution": ("^", "#009E73"),
    "none": ("X", "#666666"),
}
# A label stands clear of the labels that are nearer to it than so much of the figure's height.
APART = 0.034


def curves_png(study: Study, dpi: int = 110) -> bytes:
    """Accuracy on the validation pictures against the epoch: each entry's mean over its seeds."""
    figure = Figure(figsize=(8.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours, styles = len(LINE_COLOURS), len(LINE_STYLES)
    for i, entry in enumerate(study.entries):
        points: dict[float, list[float]] = {}
        for epoch, value in (point for r in study.results if r.entry == entry.name for point in r.curve):
            points.setdefault(epoch, []).append(100 * value)
        epochs = sorted(points)
        style: Any = {"color": LINE_COLOURS[i % colours], "linestyle": LINE_STYLES[i // colours % styles]}
        means = [statistics.fmean(points[epoch]) for epoch in epochs]
        repeated = i >= colours * styles  # told apart from the first ones by its points
        marker = "." if repeated or len(epochs) < 3 else ""
        axes.plot(epochs, means, label=entry.name, linewidth=1.3, marker=marker, **style)
    _finish(axes, "epoch", "accuracy on the validation pictures, %")
    best = [100 * value for r in study.results for _, value in r.curve]
    if best:  # the first epochs would leave no room for the rest
        axes.set_ylim(bottom=max(min(best), statistics.median(best) - 3 * (max(best) - statistics.median(best))))
    axes.legend(
        frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=1 + len(study.entries) // 22
    )
    return to_png(figure, dpi)


def speed_png(study: Study, dpi: int = 130) -> bytes:
    """Test accuracy against measured inference pictures a second: a point an entry, with its deviation over seeds."""
    figure = Figure(figsize=(8.2, 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = [(e, study.costs[e.name], study.accuracies(e.name)) for e in study.entries if e.name in study.costs]
    places = []
    for entry, cost, found in shown:
        if found:
            mark, colour = MARKS[entry.group]
            mean, deviation = statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else 0.0
            style: Any = {"fmt": mark, "color": colour, "markersize": 6, "elinewidth": 1, "capsize": 2}
            axes.errorbar(cost.inference_per_s, mean, deviation, **style)
            places.append((cost.inference_per_s, mean, entry.name, colour))
    axes.set_xscale("log")
    device = ", ".join(dict.fromkeys(cost.device for _, cost, _ in shown))
    _finish(axes, f"inference, pictures per second ({device}; log scale)", "accuracy on the test pictures, %")
    axes.margins(x=0.12, y=0.08)
    _label(figure, axes, places)
    used = [group for group in MARKS if any(entry.group == group for entry, _, _ in shown)]
    handles = [Line2D([], [], marker=MARKS[g][0], color=MARKS[g][1], linestyle="", label=g) for g in used]
    axes.legend(handles=handles, frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 1.08), ncols=4)
    return to_png(figure, dpi)


def _label(figure: Figure, axes: Axes, places: list[tuple[float, float, str, str]]) -> None:
    """Names beside the points; where they would cover each other, they are moved up and down and joined by a line."""
    figure.draw_without_rendering()
    to_figure = axes.transData + axes.transAxes.inverted()
    taken: list[tuple[float, float, float]] = []
    for x, y, name, colour in sorted(places, key=lambda place: place[1]):
        at, height = to_figure.transform((x, y))
        width = 0.013 * len(name)
        place = height
        for shift in (step * sign * APART / 2 for step in range(60) for sign in (1, -1)):
            place = height + shift
            if 0 <= place <= 1 and not any(
                abs(place - other) < APART and at < right and left < at + width for left, right, other in taken
            ):
                break
        taken.append((at, at + width, place))
        axes.annotate(
            name,
            (x, y),
            (at + 0.012, place),
            textcoords="axes fraction",
            fontsize=7.5,
            color=colour,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3},
        )


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
