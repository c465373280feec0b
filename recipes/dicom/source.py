"""What a DICOM-SEG takes over from the images that it belongs to, and nothing else of them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import guarded, read_header
from ssmvision.recipes.dicom.series import Series

__all__ = ["reference_headers"]

# A segmentation has to repeat the Patient, Study and Frame of Reference modules of its images (DICOM PS3.3, A.51.3), so
# that archives file it with them. Only what they require is taken (types 1 and 2), no comments, ages or other names.
FILED_UNDER = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
    *("FrameOfReferenceUID", "PositionReferenceIndicator", "SpecificCharacterSet"),
)
# Without these there is nothing to be filed under, or to lie in.
REQUIRED = ("StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")
# What the segmentation refers to by UID, and the geometry that it shares.
IMAGE = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality", "InstanceNumber"),
    *("Rows", "Columns", "NumberOfFrames", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"),
    *("SliceThickness", "SpacingBetweenSlices"),
)
GEOMETRY_GROUPS = {
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
}


def reference_headers(series: Series) -> list[Any]:
    """One data set per file of a series, in the order of its slices, with only what a segmentation needs of it.

    Raises:
        UserError: a file lacks a UID that a segmentation has to refer to.
    """
    return [_reduced(path, read_header(path)) for path in series.files]


def _reduced(path: Path, header: Any) -> Any:
    with guarded(path, "what a segmentation takes over of it cannot be read"):
        return _needed(path, header)


def _needed(path: Path, header: Any) -> Any:
    from pydicom import Dataset

    if missing := [name for name in REQUIRED if not header.get(name)]:
        raise UserError(
            f"{path}: has no {', '.join(missing)}, which a DICOM-SEG must refer to; export it again, or take "
            "--output_format nifti"
        )
    kept = _picked(header, (*FILED_UNDER, *IMAGE))
    for name in FILED_UNDER[:-1]:
        if name not in kept:
            setattr(kept, name, None)
    if "PerFrameFunctionalGroupsSequence" in header:
        kept.PerFrameFunctionalGroupsSequence = [_groups(g) for g in header.PerFrameFunctionalGroupsSequence]
        shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
        kept.SharedFunctionalGroupsSequence = [_groups(shared[0])]
    return kept


def _groups(group: Any) -> Any:
    from pydicom import Dataset

    kept = Dataset()
    for name, inside in GEOMETRY_GROUPS.items():
        if group.get(name):
            setattr(kept, name, [_picked(group[name][0], inside)])
    return kept


def _picked(header: Any, names: Iterable[str]) -> Any:
    from pydicom import Dataset

    kept = Dataset()
    for name in names:
        if name in header:
            setattr(kept, name, header[name].value)
    return kept
