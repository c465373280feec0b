"""Writes small DICOM series, contours and segmentations with known geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    generate_uid,
)

OBLIQUE = ((0.8, 0.6, 0.0), (-0.36, 0.48, 0.8))


@dataclass(frozen=True)
class Scanner:
    """Where slices go and what their tags say; directions in LPS."""

    across: tuple[float, float, float] = (1.0, 0.0, 0.0)
    down: tuple[float, float, float] = (0.0, 1.0, 0.0)
    origin: tuple[float, float, float] = (-20.0, -30.0, 10.0)
    spacing: tuple[float, float] = (0.8, 0.7)  # between rows, between columns
    gap: float = 3.0
    shear: float = 0.0  # mm along `down` per slice
    series: str = field(default_factory=generate_uid)
    study: str = field(default_factory=generate_uid)
    frame: str = field(default_factory=generate_uid)
    tags: Mapping[str, Any] = field(default_factory=dict)

    def with_tags(self, **tags: Any) -> Scanner:
        return replace(self, tags={**self.tags, **tags})

    def place(self, column: float, row: float, index: float) -> NDArray[np.float64]:
        """LPS mm of a voxel, from the definition in DICOM PS3.3, C.7.6.2.1.1."""
        across, down = np.array(self.across), np.array(self.down)
        step = np.cross(across, down) * self.gap + down * self.shear
        return np.array(self.origin) + across * self.spacing[1] * column + down * self.spacing[0] * row + step * index


def meta(data: Dataset, kind: str) -> Dataset:
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data


def save(path: Path, data: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def _common(scanner: Scanner, stored: NDArray[Any]) -> Dataset:
    data = Dataset()
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "CT", scanner.series, scanner.study
    data.FrameOfReferenceUID, data.SeriesNumber, data.PatientID, data.PatientName = scanner.frame, 3, "P0", "Some^One"
    data.Rows, data.Columns = stored.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.PixelData = np.ascontiguousarray(stored.astype(np.uint16)).tobytes()
    return data


def slice_of(scanner: Scanner, stored: NDArray[Any], index: float, intercept: float = -1024.0) -> Dataset:
    """One classic slice; stored (rows, columns)."""
    data = meta(_common(scanner, stored), CTImageStorage)
    data.InstanceNumber, data.SliceThickness = int(index) + 1, scanner.gap
    data.PixelSpacing = list(scanner.spacing)
    data.ImageOrientationPatient = [*scanner.across, *scanner.down]
    data.ImagePositionPatient = [f"{value:.6f}" for value in scanner.place(0, 0, index)]
    data.RescaleSlope, data.RescaleIntercept = 1, intercept
    for name, value in scanner.tags.items():
        setattr(data, name, value)
    return data


def classic(folder: Path, values: NDArray[Any], scanner: Scanner) -> list[Dataset]:
    """A volume (column, row, slice) as one file per slice, named against their order."""
    slices = [slice_of(scanner, values[..., k].T + 1024, k) for k in range(values.shape[2])]
    for k, data in enumerate(slices):
        save(folder / f"IM{99 - k}.dcm", data)
    return slices


def _item(**tags: Any) -> Dataset:
    item = Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return item


def enhanced(path: Path, values: NDArray[Any], scanner: Scanner, order: Sequence[int] | None = None) -> Dataset:
    """A volume (column, row, slice) as one multi-frame file; `order` is that of the frames, each with its intercept."""
    order = list(range(values.shape[2])) if order is None else list(order)
    stored = np.stack([values[..., k].T + 1000 + k for k in order])
    data = meta(_common(scanner, stored), EnhancedCTImageStorage)
    data.NumberOfFrames = len(order)
    measures = _item(PixelSpacing=list(scanner.spacing), SliceThickness=scanner.gap)
    orientation = _item(ImageOrientationPatient=[*scanner.across, *scanner.down])
    data.SharedFunctionalGroupsSequence = [
        _item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[orientation])
    ]
    data.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=[f"{v:.6f}" for v in scanner.place(0, 0, k)])],
            PixelValueTransformationSequence=[_item(RescaleSlope=1, RescaleIntercept=-1000 - k, RescaleType="HU")],
        )
        for k in order
    ]
    for name, value in scanner.tags.items():
        setattr(data, name, value)
    save(path, data)
    return data


def box(scanner: Scanner, low: tuple[float, float], high: tuple[float, float], index: float) -> list[float]:
    """Points of a rectangle on a slice, its corners in columns and rows."""
    corners = ((low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1]))
    return [round(float(v), 5) for column, row in corners for v in scanner.place(column, row, index)]


def rtstruct(
    path: Path, scanner: Scanner, regions: Mapping[str, Sequence[list[float]]], kind: str = "CLOSED_PLANAR"
) -> Dataset:
    """Contours by the names of their regions."""
    data = meta(Dataset(), RTStructureSetStorage)
    data.Modality, data.SeriesInstanceUID, data.StudyInstanceUID = "RTSTRUCT", generate_uid(), scanner.study
    study = _item(RTReferencedSeriesSequence=[_item(SeriesInstanceUID=scanner.series)])
    data.ReferencedFrameOfReferenceSequence = [_item(RTReferencedStudySequence=[study])]
    data.StructureSetROISequence = [_item(ROINumber=n, ROIName=name) for n, name in enumerate(regions)]
    data.ROIContourSequence = [
        _item(
            ReferencedROINumber=n,
            ContourSequence=[
                _item(ContourGeometricType=kind, NumberOfContourPoints=len(points) // 3, ContourData=points)
                for points in contours
            ],
        )
        for n, contours in enumerate(regions.values())
    ]
    save(path, data)
    return data


# What may carry a patient's name or number, planted by `plant`: kind of value by its tag's representation.
SECRET = "Zyx98765"
PLANTED = {
    "PN": f"{SECRET}^{SECRET}",
    "LO": SECRET,
    "SH": SECRET,
    "ST": SECRET,
    "LT": SECRET,
    "UT": SECRET,
    "AE": SECRET,
}


def plant(data: Dataset) -> None:
    """Puts the secret into every text tag of the patient, study, series, equipment and image, and a private block."""
    for tag, (representation, multiplicity, _, retired, keyword) in DicomDictionary.items():
        group = tag >> 16
        fitting = representation in PLANTED and group in (0x08, 0x10, 0x12, 0x18, 0x20, 0x28, 0x32, 0x38, 0x40)
        if fitting and not retired and keyword and multiplicity in ("1", "1-n") and keyword not in data:
            setattr(data, keyword, PLANTED[representation])
    data.PatientName, data.PatientID = PLANTED["PN"], SECRET
    block = data.private_block(0x0011, SECRET, create=True)
    block.add_new(0x01, "LO", SECRET)


def hits(path: Path) -> bool:
    content = path.read_bytes()
    if path.name.endswith(".nii.gz"):
        content += nibabel.load(path).header.binaryblock
    return SECRET.encode() in content
