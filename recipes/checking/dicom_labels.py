"""Checks that DICOM contours and segmentations lie on the series that they refer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["check_contours", "check_segmentation"]

# Voxels by which points may lie off a slice's plane, and beyond the outermost voxel centres.
OFF_PLANE = 0.25
OUTSIDE = 1.0
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


def _voxels(grid: Grid, points_lps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points (N, 3) in the patient's mm (LPS) as voxel indices."""
    inverse = np.linalg.inv(grid.affine)
    indices: NDArray[np.float64] = points_lps * LPS_TO_RAS @ inverse[:3, :3].T + inverse[:3, 3]
    return indices


def check_contours(findings: Findings, path: Path, header: Any, grid: Grid) -> None:
    """Checks an RTSTRUCT: every region has closed contours, on slices, inside the volume."""
    names = {int(roi.ROINumber): str(roi.get("ROIName", "")) for roi in header.get("StructureSetROISequence", ())}
    if not names:
        findings.error(path, "holds 0 regions", "export the contours again")
    contours = {int(roi.ReferencedROINumber): list(roi.get("ContourSequence", ())) for roi in _rois(header)}
    counts = ", ".join(f"{name} ({len(contours.get(number, []))})" for number, name in names.items())
    findings.note(path, f"regions and their contours: {counts or 'none'}")
    for number, name in names.items():
        if not contours.get(number):
            findings.warning(path, f"region {name!r} has 0 contours", "confirm that it is empty, or export it again")
        else:
            _check_region(findings, path, name, contours[number], grid)


def _rois(header: Any) -> Any:
    return header.get("ROIContourSequence", ())


def _check_region(findings: Findings, path: Path, name: str, contours: list[Any], grid: Grid) -> None:
    kinds = {str(contour.get("ContourGeometricType", "")) for contour in contours}
    if kinds != {"CLOSED_PLANAR"}:
        problem = f"region {name!r} has contours of the kind {sorted(kinds)}"
        findings.warning(path, problem, "only CLOSED_PLANAR encloses voxels")
    outside = off = 0
    for contour in contours:
        points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
        voxels = _voxels(grid, points)
        outside += bool((voxels < -OUTSIDE).any() or (voxels > np.array(grid.shape) - 1 + OUTSIDE).any())
        off += bool(np.abs(voxels[:, 2] - np.rint(voxels[:, 2].mean())).max() > OFF_PLANE)
    if outside:
        problem = f"region {name!r}: {outside} of {len(contours)} contours lie outside of the series"
        findings.error(path, problem, "pair it with the series that it was drawn on")
    elif off:
        problem = f"region {name!r}: {off} of {len(contours)} contours do not lie on a slice"
        findings.warning(path, problem, "draw or resample them on the series' slices")


def check_segmentation(findings: Findings, path: Path, header: Any, grid: Grid) -> None:
    """Checks a SEG: its segments have names, its frames lie on slices of the series."""
    names = [str(segment.get("SegmentLabel", "")) for segment in header.get("SegmentSequence", ())]
    findings.note(path, f"segments: {', '.join(names) or 'none'}")
    if not names:
        findings.error(path, "holds 0 segments", "export the segmentation again")
    if header.get("SegmentationType") == "FRACTIONAL":
        findings.warning(path, "is FRACTIONAL: voxels hold shares, not labels", "export it as BINARY or LABELMAP")
    size, expected = (int(header.Columns), int(header.Rows)), grid.shape[:2]
    if size != expected:
        problem = f"its frames have {size[0]} x {size[1]} pixels, the series {expected[0]} x {expected[1]}"
        findings.error(path, problem, "export it on the grid of its series")
        return
    frames = header.get("PerFrameFunctionalGroupsSequence", ())
    places = [f.PlanePositionSequence[0].ImagePositionPatient for f in frames if "PlanePositionSequence" in f]
    if len(places) != int(header.get("NumberOfFrames") or 1):
        problem = f"{len(places)} of {header.get('NumberOfFrames')} frames say where they lie"
        findings.error(path, problem, "export it with a plane position for each frame")
        return
    corners = _voxels(grid, np.array([[float(value) for value in place] for place in places]))
    slices = np.rint(corners[:, 2])
    aside = np.abs(np.column_stack([corners[:, :2], corners[:, 2] - slices])).max(axis=1) > OFF_PLANE
    wrong = aside | (slices < 0) | (slices > grid.shape[2] - 1)
    if wrong.any():
        problem = f"{int(wrong.sum())} of {len(places)} frames lie on no slice of the series"
        findings.error(path, problem, "export it on the grid of its series")
