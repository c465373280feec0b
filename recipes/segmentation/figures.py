"""Figures of a segmentation run as PNG bytes: labels over the image in three planes, and training curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from nibabel.orientations import apply_orientation, io_orientation
from numpy.typing import NDArray

__all__ = [
    *("LINE_COLOURS", "LINE_STYLES", "PALETTE", "PLANES", "Curve", "Overlay", "Plane"),
    *("curves_png", "cut_plane", "name_sides", "overlay_png", "to_png", "to_ras"),
]

# Okabe and Ito's palette, told apart with every common form of colour blindness; vermilion is kept for errors.
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#0072B2")
ERROR_COLOUR = "#D55E00"
LINE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, PAPER = "#1a1a1a", "#ffffff"
LINE_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Plane:
    """A slicing plane of a RAS+ volume: sliced axis, then the axes shown left to right and bottom to top."""

    name: str
    axis: int
    across: int
    up: int
    letters: tuple[str, str, str, str]  # left, right, bottom, top of the picture
    mirror: bool  # radiological convention: the patient's right is on the viewer's left


PLANES = (
    Plane("axial", 2, 0, 1, ("R", "L", "P", "A"), True),
    Plane("coronal", 1, 0, 2, ("R", "L", "I", "S"), True),
    Plane("sagittal", 0, 1, 2, ("A", "P", "I", "S"), True),
)


@dataclass(frozen=True)
class Overlay:
    """One column of an overlay figure.

    Attributes:
        title: shown above the column.
        labels: label map (X, Y, Z) drawn over the image, or None for the image alone.
        errors_against: reference label map; given, the voxels where `labels` differs from it are drawn instead.
    """

    title: str
    labels: NDArray[Any] | None = None
    errors_against: NDArray[Any] | None = None


@dataclass(frozen=True)
class Curve:
    """A named line: `x` and `y` of equal length, and which panel it belongs to."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    panel: str


def to_ras(volume: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """The volume flipped and transposed to the closest RAS+ axes, and its spacing in mm in that order.

    An oblique volume keeps its own grid; only its axes are permuted and flipped, nothing is interpolated.
    """
    orientation = io_orientation(affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(orientation[:, 0])]
    return apply_orientation(volume, orientation), (float(spacing[0]), float(spacing[1]), float(spacing[2]))


def to_png(figure: Figure, dpi: int) -> bytes:
    """The figure as a PNG file's bytes; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # No software name and date in the file.
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=PAPER, metadata={"Software": None})
    return buffer.getvalue()


def _best_slice(labels: NDArray[Any], axis: int) -> int:
    """The slice with most labelled voxels, or the middle one of an empty map."""
    counts = (labels > 0).sum(axis=tuple(a for a in range(3) if a != axis))
    return int(counts.argmax()) if counts.any() else labels.shape[axis] // 2


def cut_plane(volume: NDArray[Any], plane: Plane, index: int) -> NDArray[Any]:
    """The slice as rows from top to bottom and columns from left to right of the picture."""
    picture = np.take(volume, index, axis=plane.axis)
    # The kept axes are in rising order, which is (across, up) in every plane.
    picture = picture.T[::-1]
    return np.asarray(picture[:, ::-1] if plane.mirror else picture)


def _draw(
    axes: Axes, image: NDArray[Any], plane: Plane, index: int, overlay: Overlay, size_mm: Sequence[float]
) -> None:
    half_width, half_height = size_mm[plane.across] / 2, size_mm[plane.up] / 2
    style: dict[str, Any] = {
        "extent": (-half_width, half_width, -half_height, half_height),  # mm, so that every plane has one scale
        "aspect": "equal",
        "interpolation": "nearest",
    }
    vmin, vmax = np.percentile(image, (0.5, 99.5))
    axes.imshow(cut_plane(image, plane, index), cmap="gray", vmin=vmin, vmax=vmax, **style)
    if overlay.labels is not None:
        labels = cut_plane(overlay.labels, plane, index)
        colours, alpha = ListedColormap(PALETTE), 0.55
        shown: Any = np.ma.masked_equal(labels, 0)
        if overlay.errors_against is not None:
            wrong = labels != cut_plane(overlay.errors_against, plane, index)
            colours, alpha, shown = ListedColormap([ERROR_COLOUR]), 0.9, np.ma.masked_equal(wrong.astype(int), 0)
        # Label 1 takes the first colour; more labels than colours start over.
        shown = (shown - 1) % colours.N
        axes.imshow(shown, cmap=colours, vmin=-0.5, vmax=colours.N - 0.5, alpha=alpha, **style)
    widest = max(size_mm[p.across] for p in PLANES) / 2
    axes.set_xlim(-widest, widest)
    axes.set_facecolor(PAPER)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def name_sides(axes: Axes, plane: Plane, size_mm: Sequence[float]) -> None:
    """Names the sides at the picture's own edges, which may lie inside the panel."""
    outline = [withStroke(linewidth=2, foreground="black")]
    style: dict[str, Any] = {"color": "white", "fontsize": 8, "path_effects": outline}
    x, y = 0.96 * size_mm[plane.across] / 2, 0.96 * size_mm[plane.up] / 2
    left, right, bottom, top = plane.letters
    axes.text(-x, 0, left, ha="left", va="center", **style)
    axes.text(x, 0, right, ha="right", va="center", **style)
    axes.text(0, -y, bottom, ha="center", va="bottom", **style)
    axes.text(0, y, top, ha="center", va="top", **style)


def _legend(figure: Figure, classes: Mapping[str, int], with_errors: bool) -> None:
    handles = [Patch(color=PALETTE[(value - 1) % len(PALETTE)], label=name) for name, value in classes.items() if value]
    if with_errors:
        handles.append(Patch(color=ERROR_COLOUR, label="differs from the reference"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)


def overlay_png(
    image: NDArray[Any],
    affine: NDArray[np.float64],
    overlays: Sequence[Overlay],
    classes: Mapping[str, int],
    slices_from: NDArray[Any] | None = None,
    dpi: int = 150,
) -> bytes:
    """A grid of pictures: a row each for axial, coronal and sagittal, a column for each overlay.

    Radiological convention: the patient's right is on the viewer's left; sagittal slices face left. Pixels keep the
    voxel's proportions.

    Args:
        image: intensities (X, Y, Z) in any orientation.
        affine: (4, 4), voxel index to RAS+ mm, of the image and every label map.
        overlays: columns, left to right.
        classes: label names and ids for the legend; id 0 is not drawn.
        slices_from: label map whose fullest slices are shown; by default that of the first overlay that has one.
        dpi: resolution of the PNG.

    Raises:
        ValueError: a label map's shape differs from the image's.
    """
    for overlay in overlays:
        for labels in (overlay.labels, overlay.errors_against):
            if labels is not None and labels.shape != image.shape:
                raise ValueError(f"{overlay.title}: label map has shape {labels.shape}, the image {image.shape}")
    ras, spacing = to_ras(image, affine)
    turned = [
        Overlay(o.title, *(None if v is None else to_ras(v, affine)[0] for v in (o.labels, o.errors_against)))
        for o in overlays
    ]
    chosen = to_ras(slices_from, affine)[0] if slices_from is not None else None
    if chosen is None:
        chosen = next((o.labels for o in turned if o.labels is not None), np.zeros(ras.shape, dtype=np.uint8))

    size_mm = [n * s for n, s in zip(ras.shape, spacing, strict=True)]
    widest, width = max(size_mm[p.across] for p in PLANES), 1.75
    heights = [size_mm[p.up] / widest for p in PLANES]
    figure = Figure(figsize=(width * len(turned), width * sum(heights) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(PLANES), len(turned), squeeze=False, height_ratios=heights)
    for row, plane in zip(grid, PLANES, strict=True):
        index = _best_slice(chosen, plane.axis)
        for axes, overlay in zip(row, turned, strict=True):
            _draw(axes, ras, plane, index, overlay, size_mm)
            name_sides(axes, plane, size_mm)
        row[0].set_ylabel(plane.name, color=INK)
    for axes, overlay in zip(grid[0], turned, strict=True):
        axes.set_title(overlay.title, color=INK, fontsize=9)
    _legend(figure, classes, any(o.errors_against is not None for o in overlays))
    return to_png(figure, dpi)


def curves_png(curves: Sequence[Curve], x_label: str = "step", dpi: int = 110) -> bytes:
    """Line charts, one panel per distinct `Curve.panel`, in order of appearance.

    Raises:
        ValueError: no curve is given.
    """
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    if not panels:
        raise ValueError("curves_png needs at least one curve")
    figure = Figure(figsize=(4.6 * len(panels), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for i, curve in enumerate(c for c in curves if c.panel == panel):
            style = {"color": LINE_COLOURS[i % len(LINE_COLOURS)], "linestyle": LINE_STYLES[i % len(LINE_STYLES)]}
            marker = "o" if len(curve.x) < 25 else ""
            axes.plot(curve.x, curve.y, label=curve.name, marker=marker, markersize=3, **style)
        axes.set_xlabel(x_label)
        axes.set_title(panel, fontsize=10)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        # Below the panel, where it hides no curve.
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return to_png(figure, dpi)
