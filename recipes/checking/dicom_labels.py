"""Checks that DICOM contours and segmentations lie on the series that they refer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.dicom.contours import CLOSED, OFF_PLANE, OUTSIDE, contour_points, to_voxels
from ssmvision.recipes.dicom.labels import LabelFile
from ssmvision.recipes.dicom.segments import frame_slices
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["check_contours", "check_segmentation"]


def check_contours(
    findings: Findings, path: Path, regions: Mapping[int, tuple[str, Sequence[Any]]], grid: Grid
) -> None:
    """Checks an RTSTRUCT: every region has closed contours, on slices, inside the volume.

    Args:
        findings: to add to.
        path: of the RTSTRUCT.
        regions: as `contours_of` finds them.
        grid: of the series.
    """
    if not regions:
        findings.error(path, "holds 0 regions", "export the contours again")
    counts = ", ".join(f"{name} ({len(contours)})" for name, contours in regions.values())
    findings.note(path, f"regions and their contours: {counts or 'none'}")
    for name, contours in regions.values():
        if not contours:
            findings.warning(path, f"region {name!r} has 0 contours", "confirm that it is empty, or export it again")
        else:
            _check_region(findings, path, name, contours, grid)


def _check_region(findings: Findings, path: Path, name: str, contours: Sequence[Any], grid: Grid) -> None:
    kinds = {str(contour.get("ContourGeometricType", "")) for contour in contours}
    if not kinds <= set(CLOSED):
        problem = f"region {name!r} has contours of the kind {sorted(kinds)}"
        findings.warning(path, problem, f"only {' and '.join(CLOSED)} enclose voxels")
    outside = off = unreadable = 0
    for contour in contours:
        try:
            voxels = to_voxels(grid, contour_points(contour))
        except (ValueError, TypeError, AttributeError):
            unreadable += 1
            continue
        outside += bool((voxels < -OUTSIDE).any() or (voxels > np.array(grid.shape) - 1 + OUTSIDE).any())
        off += bool(np.abs(voxels[:, 2] - np.rint(voxels[:, 2].mean())).max() > OFF_PLANE)
    if unreadable:
        problem = f"region {name!r}: {unreadable} of {len(contours)} contours have no readable points"
        findings.error(path, problem, "export the contours again")
    if outside:
        problem = f"region {name!r}: {outside} of {len(contours)} contours lie outside of the series"
        findings.error(path, problem, "pair it with the series that it was drawn on")
    elif off:
        problem = f"region {name!r}: {off} of {len(contours)} contours do not lie on a slice"
        findings.warning(path, problem, "draw or resample them on the series' slices")


def check_segmentation(findings: Findings, path: Path, labels: LabelFile, grid: Grid) -> None:
    """Checks a SEG: its segments have names, its frames lie on slices of the series."""
    findings.note(path, f"segments: {', '.join(labels.names.values()) or 'none'}")
    if not labels.names:
        findings.error(path, "holds 0 segments", "export the segmentation again")
    if labels.header.get("SegmentationType") == "FRACTIONAL":
        findings.warning(path, "is FRACTIONAL: voxels hold shares, not labels", "export it as BINARY or LABELMAP")
    findings.attempt(path, lambda: frame_slices(path, labels.header, grid))
