"""Label maps from the contours (RTSTRUCT) or segments (SEG) that refer to a series."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.contours import contour_mask, contours_of
from ssmvision.recipes.dicom.files import guarded, kind_of, read_header
from ssmvision.recipes.dicom.segments import segment_mask, segments_of
from ssmvision.recipes.dicom.series import Series

__all__ = ["LabelFile", "Overlap", "label_map", "matching", "open_labels"]

Overlap = Literal["error", "first", "last"]


class LabelFile:
    """Named regions of an RTSTRUCT or SEG.

    Args:
        path: the file.
        header: its data set, without pixels.

    Attributes:
        names: of the regions by their numbers; a name may occur twice.
    """

    def __init__(self, path: Path, header: Any) -> None:
        self.path, self.header = path, header
        self.contours = contours_of(header) if kind_of(header) == "RTSTRUCT" else None
        regions = segments_of(header) if self.contours is None else {n: c[0] for n, c in self.contours.items()}
        self.names: dict[int, str] = regions

    def mask(self, number: int, series: Series, note: Callable[[str], None] = lambda text: None) -> NDArray[np.bool_]:
        """One region: (X, Y, Z) on the grid of its series.

        Raises:
            UserError: as `contour_mask` and `segment_mask`.
        """
        self.check_frame(number, series)
        if self.contours is None:
            return segment_mask(self.path, self.header, number, series.grid)
        name, contours = self.contours[number]
        with guarded(self.path, f"region {name!r} cannot be read"):
            return contour_mask(self.path, name, contours, series, note)

    def check_frame(self, number: int, series: Series) -> None:
        """Refuses a region that is given in other coordinates than the series.

        Raises:
            UserError: both state a frame of reference, and not the same.
        """
        with guarded(self.path, "its frame of reference cannot be read"):
            stated = self.header.get("FrameOfReferenceUID")
            if self.contours is not None:
                rois = self.header.get("StructureSetROISequence") or ()
                stated = next(
                    (r.get("ReferencedFrameOfReferenceUID") for r in rois if int(r.ROINumber) == number), None
                )
        if stated and series.frame_of_reference and str(stated) != series.frame_of_reference:
            raise UserError(
                f"{self.path}: region {self.names[number]!r} has another frame of reference than {series.path}, so its "
                "coordinates mean other places; pair it with the series that it was drawn on, or resample it"
            )


def open_labels(path: Path) -> LabelFile:
    """Opens an RTSTRUCT or SEG.

    Raises:
        UserError: not readable, or something else.
    """
    header = read_header(path)
    kind = kind_of(header)
    if kind not in ("RTSTRUCT", "SEG"):
        raise UserError(f"{path}: holds no contours or segmentation but {header.get('Modality', 'unknown')} ({kind})")
    with guarded(path, "its regions cannot be read"):
        return LabelFile(path, header)


def matching(names: Mapping[int, str], patterns: Sequence[str]) -> list[int]:
    """Numbers of the regions that are named by a pattern exactly, or, where none is, as a glob whatever the case."""
    found: list[int] = []
    for pattern in patterns:
        exact = [number for number, name in names.items() if name.strip() == pattern.strip()]
        folded = pattern.strip().casefold()
        found += exact or [n for n, name in names.items() if fnmatchcase(name.strip().casefold(), folded)]
    return list(dict.fromkeys(found))


def label_map(
    labels: LabelFile,
    series: Series,
    rois: Mapping[str, Sequence[str]],
    overlap: Overlap = "error",
    note: Callable[[str], None] = lambda text: None,
) -> NDArray[np.uint8]:
    """One id per voxel.

    Args:
        labels: the regions.
        series: that they belong to.
        rois: name of a label to the regions (see `matching`) that it is made of; ids are 1, 2, ... in this order.
        overlap: what a voxel gets that two labels claim; "error" refuses.
        note: see `contour_mask`; texts start with the label, not with a region's name, which may name a patient.

    Returns:
        (X, Y, Z) on the series' grid.

    Raises:
        UserError: labels overlap though they must not, or a region lies off the grid.
    """
    ids = np.zeros(series.grid.shape, np.uint8)
    for number, (label, patterns) in enumerate(rois.items(), 1):
        mask = np.zeros(series.grid.shape, bool)
        for region in matching(labels.names, patterns):
            mask |= labels.mask(region, series, lambda text, label=label: note(f"{label}: {text}"))  # type: ignore[misc]
        taken = mask & (ids > 0)
        if overlap == "error" and taken.any():
            others = [list(rois)[i - 1] for i in np.unique(ids[taken])]
            raise UserError(
                f"{labels.path}: {int(taken.sum())} voxel(s) belong to {label!r} and to {', '.join(others)}; say which "
                "label keeps them by --overlap first or --overlap last"
            )
        ids[mask & ~taken if overlap == "first" else mask] = number
    return ids
