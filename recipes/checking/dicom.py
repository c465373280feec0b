"""Finds and checks DICOM series and the contours (RTSTRUCT) or segmentations (SEG) that refer to them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nibabel.orientations import aff2axcodes

from ssmvision.errors import UserError
from ssmvision.recipes.checking.cases import CheckCase, FoundDataset
from ssmvision.recipes.checking.dicom_labels import check_contours, check_segmentation
from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.checking.volumes import CaseReport, CheckTask
from ssmvision.recipes.fusion.dicom import is_dicom, read_dicom

__all__ = ["check_dicom_case", "find_dicom", "looks_like_dicom"]

LABEL_KINDS = ("RTSTRUCT", "SEG")


@dataclass(frozen=True)
class _File:
    """One DICOM file: what it is, its series, and the series that it refers to."""

    path: Path
    modality: str
    series: str
    refers_to: tuple[str, ...]


def looks_like_dicom(root: Path) -> bool:
    """Whether any file below a folder is DICOM."""
    return any(is_dicom(path) for path in _files(root))


def _files(root: Path) -> Iterator[Path]:
    return (path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.startswith("."))


def require_pydicom(root: Path) -> None:
    """Refuses to go on where pydicom is missing.

    Raises:
        UserError: says what to install.
    """
    if find_spec("pydicom") is None:
        raise UserError(
            f"{root}: DICOM needs pydicom, which is not installed; pip install 'ssmvision[dicom]' "
            "(in a clone: pip install '.[dicom]')"
        )


def read_header(path: Path) -> Any:
    """The data set of a DICOM file without its pixels.

    Raises:
        UserError: not readable.
    """
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: not a readable DICOM file ({error}); fetch or export it again") from None


def find_dicom(root: Path) -> FoundDataset:
    """Every folder with one image series is a case; its label map is what refers to that series.

    Raises:
        UserError: pydicom is not installed.
    """
    require_pydicom(root)
    found = FoundDataset("DICOM series", root, root)
    files = [entry for path in _files(root) if (entry := _describe(found, path)) is not None]
    images: dict[Path, set[str]] = {}
    for file in files:
        if file.modality not in LABEL_KINDS:
            images.setdefault(file.path.parent, set()).add(file.series)
    labels = [file for file in files if file.modality in LABEL_KINDS]
    used: set[Path] = set()
    for folder, series in images.items():
        name = "_".join(folder.relative_to(root).parts) or root.name
        own = [file.path for file in labels if series & set(file.refers_to)]
        used |= set(own)
        if len(own) != 1:
            problem = f"{len(own)} contours or segmentations refer to this series{f': {own}' if own else ''}"
            found.findings.error(folder, problem, "keep exactly one RTSTRUCT or SEG file, or remove the series")
        found.cases.append(CheckCase(name, (folder,), own[0] if len(own) == 1 else None, dicom=True))
    for file in labels:
        if file.path not in used:
            missing = ", ".join(file.refers_to) or "no series at all"
            found.findings.error(file.path, f"refers to {missing}, which is not here", "add the series or remove it")
    if not found.cases:
        found.findings.error(root, "0 image series found", "give the folder of DICOM series")
    return found


def _describe(found: FoundDataset, path: Path) -> _File | None:
    if not is_dicom(path):
        found.findings.note(path, "is no DICOM file and is not read")
        return None
    header = found.findings.attempt(path, lambda: read_header(path))
    if header is None:
        return None
    modality = str(header.get("Modality", ""))
    if modality not in LABEL_KINDS and "Rows" not in header:
        found.findings.note(path, f"DICOM of the kind {modality or 'unknown'} without pixels is not read")
        return None
    return _File(path, modality, str(header.get("SeriesInstanceUID", "")), tuple(_references(header)))


def _references(header: Any) -> Iterator[str]:
    """Series that contours or a segmentation refer to (DICOM PS3.3, C.8.8.5 and C.12.4)."""
    for frame in header.get("ReferencedFrameOfReferenceSequence", ()):
        for study in frame.get("RTReferencedStudySequence", ()):
            for series in study.get("RTReferencedSeriesSequence", ()):
                yield str(series.SeriesInstanceUID)
    for series in header.get("ReferencedSeriesSequence", ()):
        yield str(series.SeriesInstanceUID)


def check_dicom_case(task: CheckTask) -> CaseReport:
    """Reads a series with its geometry, and checks that its labels lie on it."""
    case, findings = task.case, Findings(task.case.id)
    folder = case.images[0]
    source = findings.attempt(folder, lambda: read_dicom(folder))
    if source is None or source.grid is None:
        return CaseReport(case.id, case.split, tuple(findings.found))
    if source.values.min() == source.values.max():
        findings.error(folder, f"every voxel is {source.values.flat[0]}", "export the series again, or remove it")
    if case.label is not None:
        header = findings.attempt(case.label, lambda: read_header(case.label))  # type: ignore[arg-type]
        if header is not None:
            check = check_contours if header.get("Modality") == "RTSTRUCT" else check_segmentation
            check(findings, case.label, header, source.grid)
    codes = "".join(str(code) for code in aff2axcodes(source.grid.affine))
    channels = 1 if source.values.ndim == 3 else int(source.values.shape[3])
    found = tuple(findings.found)
    return CaseReport(case.id, case.split, found, channels, source.grid.shape, source.grid.spacing_mm, codes)
