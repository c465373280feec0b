"""Figures of a study as PNG bytes: training curves, and the best and worst cases side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ssmvision.recipes.segmentation.figures import Curve, curves_png, to_ras

__all__ = ["Shown", "cases_png", "mean_curves"]

MARGIN_MM = 20.0
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
    """Training loss and Dice of the cases held out against the step, each network's mean over its trainings.

    Args:
        histories: per network, the rows of metrics.csv of every training.
    """
    curves = []
    for column, panel in (("train_loss", "training loss"), ("val_dice", "Dice of the cases held out")):
        for network, runs in histories.items():
            points: dict[float, list[float]] = {}
            for row in (row for rows in runs for row in rows):
                if not math.isnan(row.get(column, math.nan)):
                    points.setdefault(row["step"], []).append(row[column])
            if points:
                steps = sorted(points)
                curves.append(Curve(network, steps, [float(np.mean(points[s])) for s in steps], panel))
    return curves_png(curves)


def cases_png(cases: Sequence[Shown], classes: int, dpi: int = 80) -> bytes:
    """A row per case: the axial slice with most of the reference, plain, with the reference, with each prediction.

    Where the reference is empty, it is the slice with most of the predictions. Radiological convention: the patient's
    right is on the viewer's left. Pixels keep the voxel's proportions.

    Args:
        cases: the rows; all have the same networks.
        classes: labels without background.
        dpi: resolution of the PNG.
    """
    columns = 2 + len(cases[0].predictions)
    figure = Figure(figsize=(1.9 * columns, 2.3 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, case in zip(figure.subplots(len(cases), columns, squeeze=False), cases, strict=True):
        image, spacing = to_ras(case.image, case.affine)
        reference = to_ras(case.reference, case.affine)[0]
        found = {name: to_ras(labels, case.affine)[0] for name, labels in case.predictions.items()}
        # A case may be among the worst because nothing is to be found in it.
        labelled = reference if reference.any() else np.add.reduce([labels > 0 for labels in found.values()])
        index = int((labelled > 0).sum((0, 1)).argmax())
        box = _box(labelled[..., index], spacing)
        drawn: list[tuple[str, Any]] = [("image", None), ("reference", reference)]
        drawn += [(f"{name}\n{case.notes[name]}", labels) for name, labels in found.items()]
        for panel, (title, labels) in zip(axes, drawn, strict=True):
            cut = None if labels is None else labels[..., index][box]
            _draw(panel, image[..., index][box], cut, classes, spacing[1] / spacing[0])
            panel.set_title(title, fontsize=8)
        axes[0].set_ylabel(case.title, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


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
