"""Where each slice of a DICOM file lies: one for a classic file, many for an enhanced (multi-frame) one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import guarded, kind_of

__all__ = ["Plane", "planes_of"]

# Directions may be off by rounding of their decimals.
_DIRECTION_TOLERANCE = 1e-3
_PHOTOMETRIC = ("MONOCHROME2", "RGB")
# Sequences of functional groups that hold what a classic file has as tags (DICOM PS3.3, C.7.6.16.2).
_GROUPS = {
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
}


@dataclass(frozen=True)
class Plane:
    """One slice.

    Args:
        file: where it is.
        frame: its number in a file with several (from 0); None in a file with one.
        instance: SOPInstanceUID of the file.
        size: columns and rows.
        position: (3,) centre of the first pixel in mm (LPS).
        directions: (2, 3) unit vectors (LPS) along which the column and the row number grow.
        spacing: mm between rows, and between columns, as DICOM orders them.
        depth: mm from slice to slice as the file states it; None: it does not.
        slope, intercept: of the stored values.
        bits: of a stored value.
        photometric: MONOCHROME2 or RGB.
    """

    file: Path
    frame: int | None
    instance: str
    size: tuple[int, int]
    position: NDArray[np.float64]
    directions: NDArray[np.float64]
    spacing: tuple[float, float]
    depth: float | None
    slope: float
    intercept: float
    bits: int
    photometric: str

    @property
    def name(self) -> str:
        """For messages: the file's name, and the frame (from 1) where there are several."""
        return self.file.name if self.frame is None else f"{self.file.name} (frame {self.frame + 1})"

    @property
    def normal(self) -> NDArray[np.float64]:
        """(3,) unit vector out of the slice."""
        normal: NDArray[np.float64] = np.cross(*self.directions)
        normal /= np.linalg.norm(normal)
        return normal


def planes_of(path: Path, header: Any) -> list[Plane]:
    """The slices of one file.

    Args:
        path: the file, for messages.
        header: its data set.

    Raises:
        UserError: it does not say where its slices lie, or its pixels are of a kind that is not read.
    """
    with guarded(path, "its geometry cannot be read"):
        return list(_planes(path, header))


def _planes(path: Path, header: Any) -> Iterator[Plane]:
    kind = str(header.get("PhotometricInterpretation"))
    if kind not in _PHOTOMETRIC and kind_of(header) != "SEG":
        raise UserError(f"{path}: its pixels are {kind}; convert them to MONOCHROME2 or RGB, or the series to NIfTI")
    if "ModalityLUTSequence" in header:
        raise UserError(f"{path}: its values go through a ModalityLUTSequence; export it with a rescale slope instead")
    if "MOSAIC" in (header.get("ImageType") or ()):
        raise UserError(f"{path}: is a mosaic of slices; export it as an enhanced image or as one file per slice")
    frames = int(header.get("NumberOfFrames") or 1)
    shared = _first(header, "SharedFunctionalGroupsSequence")
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    if frames > 1 and not own:
        raise UserError(
            f"{path}: holds {frames} frames and does not say where each lies; export it as an enhanced image or as "
            "one file per slice"
        )
    if own and len(own) != frames:
        raise UserError(f"{path}: holds {frames} frames, but places {len(own)}; fetch or export it again")
    for frame in range(frames):
        groups = [header] if not own else [group for group in (own[frame], shared) if group is not None]
        yield _plane(path, header, groups, frame if own else None, kind)


def _plane(path: Path, header: Any, groups: list[Any], frame: int | None, kind: str) -> Plane:
    if missing := [name for name in ("Rows", "Columns", "SOPInstanceUID") if not header.get(name)]:
        raise UserError(f"{path}: has no {', '.join(missing)}; fetch or export it again")
    found = {name: _value(groups, name, frame is not None) for name in _GROUPS}
    needed = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    if missing := [name for name in needed if found[name] is None]:
        raise UserError(f"{path}: has no {', '.join(missing)}, so its place in space is unknown; export it again")
    directions = _numbers(found["ImageOrientationPatient"], 6).reshape(2, 3)
    _check_directions(path, directions)
    rows_mm, columns_mm = _numbers(found["PixelSpacing"], 2)
    depth = found["SpacingBetweenSlices"] or found["SliceThickness"]
    plane = Plane(
        path,
        frame,
        str(header.SOPInstanceUID),
        (int(header.Columns), int(header.Rows)),
        _numbers(found["ImagePositionPatient"], 3),
        directions,
        (float(rows_mm), float(columns_mm)),
        None if not depth else abs(float(depth)),
        *(
            1.0 if found["RescaleSlope"] is None else float(found["RescaleSlope"]),
            float(found["RescaleIntercept"] or 0),
        ),
        int(header.BitsStored),
        kind,
    )
    values = (*plane.position, *plane.spacing, plane.slope, plane.intercept, plane.depth or 0)
    if not np.isfinite(values).all() or min(plane.spacing) <= 0:
        raise UserError(f"{path}: its position, pixel size or scaling is {values}; fetch or export it again")
    return plane


def _check_directions(path: Path, directions: NDArray[np.float64]) -> None:
    if not np.abs(directions @ directions.T - np.eye(2)).max() <= _DIRECTION_TOLERANCE:
        raise UserError(
            f"{path}: ImageOrientationPatient is {directions.ravel().tolist()}, not two unit vectors at a right angle; "
            "export it again"
        )


def _value(groups: list[Any], name: str, enhanced: bool) -> Any:
    for group in groups:
        item = _first(group, _GROUPS[name]) if enhanced else group
        if item is not None and name in item and not item[name].is_empty:
            return item[name].value
    return None


def _first(header: Any, name: str) -> Any:
    sequence = header.get(name)
    return sequence[0] if sequence else None


def _numbers(values: Any, count: int) -> NDArray[np.float64]:
    numbers = np.array([float(value) for value in values])
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers where {count} are needed")
    return numbers
