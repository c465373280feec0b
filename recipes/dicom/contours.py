"""Fills the contours of an RTSTRUCT into masks on the grid of the series that they were drawn on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.series import Series
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["OFF_PLANE", "OUTSIDE", "contour_mask", "contour_points", "contours_of", "to_voxels"]

# Voxels by which points may lie off a slice's plane, and beyond the outermost voxel centres.
OFF_PLANE = 0.25
OUTSIDE = 1.0
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# Contours of one slice, of which each covers more than this share of the other's rest, are neither hole nor neighbour.
_CROSSING = 0.02
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
Mask = NDArray[np.bool_]


def to_voxels(grid: Grid, points_lps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (N, 3) in the patient's mm (LPS) as voxel indices."""
    inverse = np.linalg.inv(grid.affine)
    indices: NDArray[np.float64] = points_lps * _LPS_TO_RAS @ inverse[:3, :3].T + inverse[:3, 3]
    return indices


def contours_of(header: Any) -> dict[int, tuple[str, list[Any]]]:
    """Name and contours by the number of each region of an RTSTRUCT, those without contours included."""
    drawn = {
        int(roi.ReferencedROINumber): list(roi.get("ContourSequence") or ())
        for roi in header.get("ROIContourSequence") or ()
    }
    regions = header.get("StructureSetROISequence") or ()
    return {int(r.ROINumber): (str(r.get("ROIName", "")), drawn.get(int(r.ROINumber), [])) for r in regions}


def contour_points(contour: Any) -> NDArray[np.float64]:
    """(N, 3) points in mm (LPS).

    Raises:
        ValueError: the numbers do not come in threes, or are none.
    """
    numbers = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
    if not np.isfinite(numbers).all():
        raise ValueError("a contour has points that are not finite")
    return numbers


def contour_mask(
    path: Path, name: str, contours: Sequence[Any], series: Series, note: Callable[[str], None] = lambda text: None
) -> Mask:
    """Fills one region's contours.

    A voxel belongs to it where its centre lies inside of an odd number of contours of its slice, so that an inner
    contour is a hole, as is one that a keyhole channel joins to the outer (DICOM PS3.3, C.8.8.6.3).

    Args:
        path: the RTSTRUCT, for messages.
        name: of the region.
        contours: items of its ContourSequence.
        series: that they were drawn on.
        note: takes what should be looked at: contours that cross, slices in between without one.

    Returns:
        (X, Y, Z) on the series' grid.

    Raises:
        UserError: a contour is not closed and planar, lies between slices or outside of them, or on another slice
            than the one it refers to.
    """
    where = f"{path}: region {name!r}"
    mask = np.zeros(series.grid.shape, bool)
    slices: dict[int, list[Mask]] = {}
    places = {plane.instance: k for k, plane in enumerate(series.planes) if plane.frame is None}
    for number, contour in enumerate(contours, 1):
        index, polygon = _on_slice(f"{where}, contour {number}", contour, series.grid)
        _check_reference(f"{where}, contour {number}", contour, index, series, places)
        slices.setdefault(index, []).append(_fill(polygon, series.grid.shape[:2]))
    for index, filled in slices.items():
        mask[:, :, index] = np.logical_xor.reduce(filled)
        if any(_cross(one, other) for one, other in combinations(filled, 2)):
            note(f"contours cross on slice {index + 1}; what two of them cover is taken as a hole")
    gaps = sorted(set(range(min(slices, default=0), max(slices, default=-1) + 1)) - set(slices))
    if gaps:
        note(f"{len(gaps)} slice(s) between the first and the last have no contour, such as slice {gaps[0] + 1}")
    return mask


def _on_slice(where: str, contour: Any, grid: Grid) -> tuple[int, NDArray[np.float64]]:
    """Number of the slice that a contour lies on, and its points (N, 2) as column and row there."""
    kind = str(contour.get("ContourGeometricType", ""))
    if kind not in CLOSED:
        raise UserError(
            f"{where} is {kind or 'of no kind'}; only {' and '.join(CLOSED)} enclose voxels: export it closed"
        )
    try:
        voxels = to_voxels(grid, contour_points(contour))
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: its points cannot be read ({error}); export the contours again") from None
    if len(voxels) < 3:
        raise UserError(f"{where} has {len(voxels)} point(s), which enclose nothing; export the contours again")
    index = int(np.rint(voxels[:, 2].mean()))
    if (voxels < -OUTSIDE).any() or (voxels > np.array(grid.shape) - 1 + OUTSIDE).any():
        raise UserError(f"{where} lies outside of the series; pair it with the series that it was drawn on")
    off = float(np.abs(voxels[:, 2] - index).max())
    if off > OFF_PLANE or not 0 <= index < grid.shape[2]:
        raise UserError(
            f"{where} lies {off:.2f} slices off slice {index + 1} (allowed {OFF_PLANE}); draw or resample it on the "
            "series' slices"
        )
    return index, voxels[:, :2]


def _check_reference(where: str, contour: Any, index: int, series: Series, places: dict[str, int]) -> None:
    for item in contour.get("ContourImageSequence") or ():
        stated = places.get(str(item.get("ReferencedSOPInstanceUID", "")))
        if stated is not None and stated != index:
            names = series.planes[stated].name, series.planes[index].name
            raise UserError(f"{where} refers to {names[0]}, but lies on {names[1]}; export the contours again")


def _fill(polygon: NDArray[np.float64], shape: tuple[int, ...]) -> Mask:
    from skimage.draw import polygon2mask

    mask: Mask = polygon2mask(shape, polygon)
    return mask


def _cross(one: Mask, other: Mask) -> bool:
    """Whether two filled contours overlap without one holding the other."""
    common = int((one & other).sum())
    return common > 0 and min(int(one.sum()), int(other.sum())) - common > _CROSSING * common
