"""Figures of a classifier's report as PNG bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ssmvision.recipes.classification.metrics import Bin, Roc, Scores
from ssmvision.recipes.segmentation.figures import LINE_COLOURS, LINE_STYLES, to_png

__all__ = ["Example", "calibration_png", "confusion_png", "roc_png", "saliency_png"]

DPI = 110
# More classes than this have neither numbers in the cells nor curves of their own.
NUMBERED, CURVES = 20, 24


def confusion_png(scores: Scores) -> bytes:
    """Rows are the right classes, columns the predicted ones; shades are shares of a row, numbers are pictures."""
    matrix = np.asarray(scores.confusion, dtype=np.float64)
    names = [one.name for one in scores.classes]
    rows = matrix.sum(1, keepdims=True)
    shares = np.divide(matrix, rows, out=np.zeros_like(matrix), where=rows > 0)
    edge = min(11.0, max(4.2, 0.5 * len(names) + 2.2))
    figure = Figure(figsize=(edge + 0.8, edge), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    step = max(1, len(names) // 40)
    places = range(0, len(names), step)
    axes.set_xticks(places, [names[i] for i in places], rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(places, [names[i] for i in places], fontsize=8)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("right class")
    if len(names) <= NUMBERED:
        for (i, j), value in np.ndenumerate(matrix):
            if value:
                colour = "white" if shares[i, j] > 0.55 else "#1a1a1a"
                axes.text(j, i, f"{int(value)}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.75, label="% of the right class")
    return to_png(figure, DPI)


def calibration_png(bins: Sequence[Bin]) -> bytes:
    """Accuracy against confidence, and how many pictures have it."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    used = [one for one in bins if one.count]
    above.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="as confident as right")
    width = bins[0].high - bins[0].low
    centres = [(one.low + one.high) / 2 for one in used]
    above.bar(
        centres, [one.accuracy for one in used], width=0.92 * width, color="#56B4E9", alpha=0.55, label="accuracy"
    )
    above.plot([one.confidence for one in used], [one.accuracy for one in used], "o", color="#0072B2", markersize=4)
    above.set_ylabel("share that is right")
    above.set_ylim(0, 1)
    above.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # off every bar
    below.bar(centres, [one.count for one in used], width=0.92 * width, color="0.6")
    below.set_ylabel("pictures")
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    below.set_xlabel("confidence (probability of the predicted class)")
    below.set_xlim(0, 1)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return to_png(figure, DPI)


def roc_png(curves: Sequence[Roc]) -> bytes:
    """One-against-all ROC curves; with many classes, those of the smallest areas."""
    shown = sorted(curves, key=lambda curve: curve.auc)[:CURVES] if len(curves) > CURVES else list(curves)
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle=":")
    for i, curve in enumerate(shown):
        style: dict[str, Any] = {"color": LINE_COLOURS[i % len(LINE_COLOURS)]}
        style["linestyle"] = LINE_STYLES[i // len(LINE_COLOURS) % len(LINE_STYLES)]
        axes.plot(curve.false_positive, curve.true_positive, label=f"{curve.name} ({curve.auc:.3f})", **style)
    axes.set_xlabel("share of other classes taken for it (1 - specificity)")
    axes.set_ylabel("share of the class found (sensitivity)")
    axes.set_aspect("equal")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.02, 0.5), title="class (area)")
    return to_png(figure, DPI)


@dataclass(frozen=True)
class Example:
    """A picture to show.

    Attributes:
        image: (H, W) or (H, W, 3) in [0, 1].
        saliency: (H, W), 0 or more.
        right, predicted: class names.
        confidence: of the prediction.
    """

    image: NDArray[np.float32]
    saliency: NDArray[np.float32]
    right: str
    predicted: str
    confidence: float


def saliency_png(examples: Sequence[Example]) -> bytes:
    """Pictures with the saliency below each, scaled to its own largest value; up to six in a row."""
    columns = min(6, len(examples))
    blocks = -(-len(examples) // columns)
    figure = Figure(figsize=(1.65 * columns, 3.7 * blocks), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2 * blocks, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, one in enumerate(examples):
        above, below = grid[2 * (i // columns), i % columns], grid[2 * (i // columns) + 1, i % columns]
        above.imshow(one.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        fine = one.right == one.predicted
        text = f"{_short(one.predicted)}\n{100 * one.confidence:.0f} %" + ("" if fine else f", is {_short(one.right)}")
        above.set_title(text, fontsize=8, color="#1a1a1a" if fine else "#B34700")
        top = float(np.percentile(one.saliency, 99.5))
        below.imshow(one.saliency, cmap="magma", vmin=0, vmax=top or 1.0, interpolation="nearest")
    return to_png(figure, DPI)


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
