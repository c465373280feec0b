"""Figures of fused images as PNG bytes: sources and results side by side, whole and magnified."""

from __future__ import annotations

import io
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

__all__ = ["comparison_png", "detail_box"]

Gray = NDArray[np.float32]
BOX_COLOUR = "#D55E00"
WIDTH_INCHES = 11.0


def detail_box(truth: Gray, side: int) -> tuple[int, int, int]:
    """Row, column and side of the square in which an image varies most, at steps of a quarter of the side."""
    side = min(side, *truth.shape)
    step = max(1, side // 4)
    corners = [
        (row, column)
        for row in range(0, truth.shape[0] - side + 1, step)
        for column in range(0, truth.shape[1] - side + 1, step)
    ]
    row, column = max(corners, key=lambda c: float(truth[c[0] : c[0] + side, c[1] : c[1] + side].std()))
    return row, column, side


def comparison_png(images: Mapping[str, Gray], box: tuple[int, int, int], columns: int, dpi: int = 130) -> bytes:
    """Images of one size in rows of `columns`; below each row the same magnified within `box`.

    Args:
        images: (H, W) in [0, 1] by title, drawn from black to white without any stretch.
        box: row, column and side of the magnified square.
        columns: images a row.
        dpi: resolution of the PNG.
    """
    titles = list(images)
    groups = [titles[i : i + columns] for i in range(0, len(titles), columns)]
    height, width = images[titles[0]].shape
    ratios = [ratio for _ in groups for ratio in (height / width, 1.0)]
    figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES / columns * sum(ratios) + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2 * len(groups), columns, squeeze=False, height_ratios=ratios)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, group in enumerate(groups):
        for whole, detail, title in zip(grid[2 * i], grid[2 * i + 1], group, strict=False):
            _draw(whole, images[title])
            whole.set_title(title, fontsize=9)
            row, column, side = box
            whole.add_patch(Rectangle((column, row), side, side, fill=False, edgecolor=BOX_COLOUR, linewidth=1))
            _draw(detail, images[title][row : row + side, column : column + side])
    buffer = io.BytesIO()
    # No software name and date in the file: equal figures are equal bytes.
    figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: Axes, image: Gray) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
