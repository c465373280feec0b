"""Finds the series below a folder, and the contours and segmentations that refer to them; opens headers only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import guarded, is_cut, is_dicom, kind_of, read_header, refusal_of_cut, visible_files

__all__ = ["FoundLabels", "FoundSeries", "Scan", "scan"]


@dataclass(frozen=True)
class FoundLabels:
    """Contours or a segmentation, and the UIDs of the series that it refers to."""

    path: Path
    refers_to: tuple[str, ...]


@dataclass
class FoundSeries:
    """Files of one series.

    Args:
        uid: SeriesInstanceUID.
        modality: such as CT.
        files: sorted.
        labels: that refer to it.
    """

    uid: str
    modality: str
    files: list[Path] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all files."""
        return Path(os.path.commonpath([file.parent for file in self.files]))


@dataclass
class Scan:
    """What lies below a folder.

    Args:
        series: in the order of their first files.
        lost: labels that refer to no series here.
        refused: files that cannot be read.
        others: files that are not DICOM, or hold neither an image nor labels.
    """

    series: list[FoundSeries] = field(default_factory=list)
    lost: list[FoundLabels] = field(default_factory=list)
    refused: list[tuple[Path, UserError]] = field(default_factory=list)
    others: list[tuple[Path, str]] = field(default_factory=list)


def scan(root: Path, done: Callable[[], None] = lambda: None) -> Scan:
    """Looks at every file below a folder.

    Args:
        root: the folder.
        done: called after every file.

    Raises:
        UserError: pydicom is not installed.
    """
    found, series, labels = Scan(), dict[str, FoundSeries](), list[FoundLabels]()
    for path in visible_files(root, deep=True):
        if is_dicom(path):
            _sort_in(path, found, series, labels)
        elif is_cut(path):
            found.refused.append((path, refusal_of_cut(path)))
        else:
            found.others.append((path, "is no DICOM file and is not read"))
        done()
    found.series = sorted(series.values(), key=lambda one: one.files[0])
    for file in labels:
        owners = [series[uid] for uid in file.refers_to if uid in series]
        for owner in owners:
            owner.labels.append(file.path)
        if not owners:
            found.lost.append(file)
    return found


def _sort_in(path: Path, found: Scan, series: dict[str, FoundSeries], labels: list[FoundLabels]) -> None:
    try:
        header = read_header(path)
        kind, uid = kind_of(header), str(header.get("SeriesInstanceUID", ""))
        modality = str(header.get("Modality", ""))
        if kind == "image" and not uid:
            raise UserError(f"{path}: has no SeriesInstanceUID; fetch or export it again")
        if kind == "image":
            series.setdefault(uid, FoundSeries(uid, modality)).files.append(path)
        elif kind == "other":
            found.others.append((path, f"DICOM of the kind {modality or 'unknown'} without pixels is not read"))
        else:
            labels.append(FoundLabels(path, tuple(_references(path, header))))
    except UserError as error:
        found.refused.append((path, error))


def _references(path: Path, header: Any) -> Iterator[str]:
    """Series that contours or a segmentation refer to (DICOM PS3.3, C.8.8.5 and C.12.4)."""
    with guarded(path, "its references cannot be read"):
        for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
            for study in frame.get("RTReferencedStudySequence") or ():
                for series in study.get("RTReferencedSeriesSequence") or ():
                    yield str(series.SeriesInstanceUID)
        for series in header.get("ReferencedSeriesSequence") or ():
            yield str(series.SeriesInstanceUID)
