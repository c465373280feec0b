from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, SegmentationStorage, generate_uid

from ssmvision.cli import main
from ssmvision.recipes.checking.command import Report, check
from ssmvision.recipes.checking.config import CheckConfig
from ssmvision.recipes.dicom import files

SHAPE, SPACING, GAP = (8, 9, 5), (0.8, 0.7), 3.0  # columns, rows, slices; mm per row and column


def save(path: Path, data: Dataset, kind: Any) -> Path:
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = kind
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def place(index: int) -> list[float]:
    return [-20.0, -30.0, 10.0 + GAP * index]


def series(folder: Path, seed: int = 0) -> str:
    uid, rng = generate_uid(), np.random.default_rng(seed)
    for index in range(SHAPE[2]):
        data = Dataset()
        data.Modality, data.SeriesInstanceUID, data.InstanceNumber = "CT", uid, index + 1
        data.Columns, data.Rows = SHAPE[:2]
        data.PixelSpacing, data.ImagePositionPatient = list(SPACING), place(index)
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        data.PixelData = rng.integers(0, 2000, SHAPE[1::-1]).astype(np.uint16).tobytes()
        save(folder / f"image_{index}.dcm", data, CTImageStorage)
    return uid


def contours(
    path: Path, refers_to: str, z: float = 13.0, x: float = -18.0, regions: tuple[str, ...] = ("GTV",)
) -> Path:
    data, study, frame = Dataset(), Dataset(), Dataset()
    data.Modality, data.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    referred = Dataset()
    referred.SeriesInstanceUID = refers_to
    study.RTReferencedSeriesSequence = [referred]
    frame.RTReferencedStudySequence = [study]
    data.ReferencedFrameOfReferenceSequence = [frame]
    data.StructureSetROISequence, data.ROIContourSequence = [], []
    for number, name in enumerate(regions):
        region, drawn, contour = Dataset(), Dataset(), Dataset()
        region.ROINumber, region.ROIName = number, name
        contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", 3
        contour.ContourData = [-18.0, -28.0, z, -16.0, -28.0, z, -18.0, -26.0, z]
        drawn.ReferencedROINumber, drawn.ContourSequence = number, [contour]
        data.StructureSetROISequence.append(region)
        if name != "empty":
            data.ROIContourSequence.append(drawn)
    return save(path, data, RTStructureSetStorage)


def segmentation(path: Path, refers_to: str, offset: float = 0.0, columns: int = SHAPE[0]) -> Path:
    data, referred, segment = Dataset(), Dataset(), Dataset()
    data.Modality, data.SeriesInstanceUID, data.SegmentationType = "SEG", generate_uid(), "BINARY"
    referred.SeriesInstanceUID, segment.SegmentLabel, segment.SegmentNumber = refers_to, "tumour", 1
    data.ReferencedSeriesSequence, data.SegmentSequence = [referred], [segment]
    data.Columns, data.Rows, data.NumberOfFrames = columns, SHAPE[1], 2
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 8, 8, 7, 0
    data.PixelData = bytes(columns * SHAPE[1] * 2)
    data.PerFrameFunctionalGroupsSequence = []
    shared, orientation, measures, identification = Dataset(), Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient, measures.PixelSpacing = [1, 0, 0, 0, 1, 0], list(SPACING)
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    data.SharedFunctionalGroupsSequence, identification.ReferencedSegmentNumber = [shared], 1
    for index in (1, 2):
        group, position = Dataset(), Dataset()
        position.ImagePositionPatient = [*place(index)[:2], place(index)[2] + offset]
        group.PlanePositionSequence = [position]
        group.SegmentIdentificationSequence = [identification]
        data.PerFrameFunctionalGroupsSequence.append(group)
    return save(path, data, SegmentationStorage)


def run(root: Path) -> Report:
    return check(CheckConfig(root, workers=1))


def texts(report: Report, level: str) -> list[str]:
    return [f"{f.file.name}: {f.problem}" for f in report.findings if f.level == level]


def test_series_with_contours_or_segmentation(tmp_path: Path) -> None:
    contours(tmp_path / "p1" / "rs.dcm", series(tmp_path / "p1"))
    segmentation(tmp_path / "p2" / "seg.dcm", series(tmp_path / "p2", 1))
    report = run(tmp_path)
    assert report.dataset.layout == "DICOM series"
    assert [(c.id, c.shape, c.channels) for c in report.cases] == [("p1", SHAPE, 1), ("p2", SHAPE, 1)]
    assert report.cases[0].spacing_mm == pytest.approx((0.7, 0.8, 3.0))
    assert (texts(report, "error"), texts(report, "warning")) == ([], [])
    assert {"rs.dcm: regions and their contours: GTV (1)", "seg.dcm: segments: tumour"} <= set(texts(report, "note"))


def test_labels_that_do_not_belong_are_found(tmp_path: Path) -> None:
    series(tmp_path / "alone")
    contours(tmp_path / "lost.dcm", "1.2.3")
    uid = series(tmp_path / "outside", 1)
    contours(tmp_path / "outside" / "rs.dcm", uid, z=200.0)
    uid = series(tmp_path / "shifted", 2)
    segmentation(tmp_path / "shifted" / "seg.dcm", uid, offset=1.5)
    uid = series(tmp_path / "small", 3)
    segmentation(tmp_path / "small" / "seg.dcm", uid, columns=6)
    assert texts(run(tmp_path), "error") == [
        "alone: 0 contours or segmentations refer to this series",
        "lost.dcm: refers to 1.2.3, which is not here",
        "rs.dcm: region 'GTV': 1 of 1 contours lie outside of the series",
        "seg.dcm: 2 of 2 frames lie on no slice of the series",
        "seg.dcm: its frames have 6 x 9 pixels, the series 8 x 9",
    ]


def test_contours_between_slices_and_empty_regions_are_warnings(tmp_path: Path) -> None:
    contours(tmp_path / "rs.dcm", series(tmp_path), z=14.5, regions=("GTV", "empty"))
    assert texts(run(tmp_path), "warning") == [
        "rs.dcm: region 'GTV': 1 of 1 contours do not lie on a slice",
        "rs.dcm: region 'empty' has 0 contours",
    ]


def test_incomplete_and_damaged_series(tmp_path: Path) -> None:
    contours(tmp_path / "gap" / "rs.dcm", series(tmp_path / "gap"))
    (tmp_path / "gap" / "image_2.dcm").unlink()
    contours(tmp_path / "cut" / "rs.dcm", series(tmp_path / "cut", 1))
    path = tmp_path / "cut" / "image_1.dcm"
    path.write_bytes(path.read_bytes()[:-60])
    errors = texts(run(tmp_path), "error")
    assert len(errors) == 2
    assert errors[0].startswith("cut: ")
    assert "image_1.dcm: its pixels cannot be decoded" in errors[0]
    assert "image_1.dcm and image_3.dcm are 6.000 mm apart, the others 3.000 mm" in errors[1]


def test_missing_pydicom_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series(tmp_path)
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    assert main(["check", str(tmp_path)]) == 2
    assert "DICOM needs pydicom, which is not installed; pip install 'ssmvision[dicom]'" in capsys.readouterr().err
