"""Checks DICOM series and the contours (RTSTRUCT) or segmentations (SEG) that refer to them."""

from __future__ import annotations

from pathlib import Path

from nibabel.orientations import aff2axcodes

from ssmvision.recipes.checking.cases import CheckCase, FoundDataset
from ssmvision.recipes.checking.dicom_labels import check_contours, check_segmentation
from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.checking.volumes import CaseReport, CheckTask
from ssmvision.recipes.dicom.files import guarded, is_dicom, read_header, require, visible_files
from ssmvision.recipes.dicom.labels import LabelFile, open_labels
from ssmvision.recipes.dicom.scan import FoundSeries, Scan, scan
from ssmvision.recipes.dicom.series import Series, series_from

__all__ = ["check_dicom_case", "find_dicom", "looks_like_dicom"]


def looks_like_dicom(root: Path) -> bool:
    """Whether any file below a folder is DICOM."""
    return any(is_dicom(path) for path in visible_files(root, deep=True))


def find_dicom(root: Path) -> FoundDataset:
    """Every image series is a case; its label map is what refers to it.

    Raises:
        UserError: pydicom is not installed.
    """
    require(root)
    found, seen = FoundDataset("DICOM series", root, root), scan(root)
    for path, error in seen.refused:
        found.findings.refused(error, path)
    for path, text in seen.others:
        found.findings.note(path, text)
    for series in seen.series:
        _check_labels(found, seen, series)
        label = series.labels[0] if len(series.labels) == 1 else None
        found.cases.append(CheckCase(_name(root, seen, series), tuple(series.files), label, dicom=True))
    for labels in seen.lost:
        missing = ", ".join(labels.refers_to) or "no series at all"
        found.findings.error(labels.path, f"refers to {missing}, which is not here", "add the series or remove it")
    if not found.cases:
        found.findings.error(root, "0 image series found", "give the folder of DICOM series")
    return found


def _name(root: Path, seen: Scan, series: FoundSeries) -> str:
    name = "_".join(series.folder.relative_to(root).parts) or root.name
    beside = [one for one in seen.series if one.folder == series.folder]
    return name if len(beside) == 1 else f"{name}_{beside.index(series) + 1}"


def _check_labels(found: FoundDataset, seen: Scan, series: FoundSeries) -> None:
    count = len(series.labels)
    if count == 1:
        return
    where = (
        series.folder if not any(s.folder == series.folder for s in seen.series if s is not series) else series.files[0]
    )
    problem = f"{count} contours or segmentations refer to this series{f': {series.labels}' if count else ''}"
    fix = "keep exactly one RTSTRUCT or SEG file, or remove the series"
    # A study comes with scouts and reconstructions that nobody labels.
    labelled_beside = any(one.labels for one in seen.series if one.folder == series.folder)
    (found.findings.warning if count == 0 and labelled_beside else found.findings.error)(where, problem, fix)


def check_dicom_case(task: CheckTask) -> CaseReport:
    """Reads a series with its geometry, and checks that its labels lie on it."""
    case, findings = task.case, Findings(task.case.id)
    folder = case.images[0].parent

    def read() -> Series:
        return series_from(folder, [(file, read_header(file)) for file in case.images])

    series = findings.attempt(folder, read)
    values = None if series is None else findings.attempt(folder, series.voxels)
    if series is None or values is None:
        return CaseReport(case.id, case.split, tuple(findings.found))
    grid = series.grid
    if values.min() == values.max():
        findings.error(folder, f"every voxel is {values.flat[0]}", "export the series again, or remove it")
    if series.tilt_degrees:
        findings.note(folder, f"the gantry was tilted by {series.tilt_degrees:.1f} degrees; its grid is sheared")
    if case.label is not None:
        path = case.label
        labels = findings.attempt(path, lambda: open_labels(path))
        if labels is not None:
            findings.attempt(path, lambda: _check_on_grid(findings, labels, series))
    codes = "".join(str(code) for code in aff2axcodes(grid.affine))
    channels = 1 if values.ndim == 3 else int(values.shape[3])
    found = tuple(findings.found)
    return CaseReport(case.id, case.split, found, channels, grid.shape, grid.spacing_mm, codes)


def _check_frames(findings: Findings, labels: LabelFile, series: Series) -> None:
    """One finding at most: a program that confuses frames of reference does so for all regions."""
    count = len(findings.found)
    for number in labels.names:
        findings.attempt(labels.path, lambda number=number: labels.check_frame(number, series))  # type: ignore[misc]
        if len(findings.found) > count:
            return


def _check_on_grid(findings: Findings, labels: LabelFile, series: Series) -> None:
    _check_frames(findings, labels, series)
    with guarded(labels.path, "its regions cannot be read"):
        if labels.contours is not None:
            check_contours(findings, labels.path, labels.contours, series.grid)
        else:
            check_segmentation(findings, labels.path, labels, series.grid)
