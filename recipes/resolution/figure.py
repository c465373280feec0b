"""The resolution recipe's figure as PNG bytes."""

from __future__ import annotations

import io
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["accuracy_png"]

# Of Okabe and Ito's palette, told apart with every common form of colour blindness.
COLOURS = ("#0072B2", "#E69F00", "#D55E00", "#009E73")
MARKERS = "osD^"


def accuracy_png(accuracies: Mapping[str, Mapping[int, Sequence[float]]], train_size: int, dpi: int = 130) -> bytes:
    """Accuracy against test resolution: a dot a seed, a line through the means.

    Args:
        accuracies: shares by network and test size, a value a seed.
        train_size: marked by a vertical line.
        dpi: resolution of the PNG.
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axvline(train_size, color="0.6", linestyle=":", label=f"trained at {train_size} px")
    for (name, by_size), colour, marker in zip(accuracies.items(), COLOURS, MARKERS, strict=False):
        sizes = sorted(by_size)
        axes.plot(sizes, [100 * statistics.mean(by_size[size]) for size in sizes], color=colour, label=name)
        dots = [(size, 100 * value) for size in sizes for value in by_size[size]]
        axes.plot(*zip(*dots, strict=True), linestyle="", marker=marker, markersize=4, alpha=0.7, color=colour)
    axes.set_xlabel("pixels a side of the test pictures")
    axes.set_ylabel("accuracy (%)")
    axes.set_xticks(sorted({size for by_size in accuracies.values() for size in by_size}))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    # No software name in the file: equal figures are equal bytes.
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="#ffffff", metadata={"Software": None})
    return buffer.getvalue()
