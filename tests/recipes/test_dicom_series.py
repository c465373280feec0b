"""The DICOM zoo: the right geometry, or a refusal that names the file; never a made-up affine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    RTStructureSetStorage,
    generate_uid,
)

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import visible_files
from ssmvision.recipes.dicom.labels import label_map, open_labels
from ssmvision.recipes.dicom.seg_writing import Algorithm, write_segmentation
from ssmvision.recipes.dicom.series import Series, read_series
from tests.recipes.dicom_files import OBLIQUE, Scanner, box, classic, enhanced, meta, rtstruct, save, slice_of

VALUES = np.random.default_rng(1).integers(-1000, 2000, (8, 9, 6))
LARGE = np.random.default_rng(2).integers(-1000, 2000, (64, 48, 2))
SCANNER = Scanner()
CORNERS = [(i, j, k) for i in (0, 7) for j in (0, 8) for k in (0, 5)]
SYNTAXES = (
    JPEGLosslessSV1,
    RLELossless,
    JPEG2000Lossless,
    JPEGLSLossless,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
)


def assert_placed(series: Series, scanner: Scanner) -> None:
    """Corners lie where DICOM's formula puts them."""
    for corner in CORNERS:
        found = (series.grid.affine @ [*corner, 1])[:3] * (-1, -1, 1)
        np.testing.assert_allclose(found, scanner.place(*corner), atol=1e-4)


@pytest.mark.parametrize(
    "scanner",
    [
        Scanner(),
        Scanner(*OBLIQUE),
        Scanner((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)),  # sagittal
        Scanner((1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),  # coronal
        Scanner((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0), gap=0.625),  # flipped
    ],
    ids=["axial", "oblique", "sagittal", "coronal", "flipped"],
)
def test_grid_is_that_of_simpleitk(scanner: Scanner, tmp_path: Path) -> None:
    classic(tmp_path / "ct", VALUES, scanner)
    series = read_series(tmp_path / "ct")
    assert series.grid.shape == VALUES.shape
    np.testing.assert_array_equal(series.voxels(), VALUES)
    assert_placed(series, scanner)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    theirs = reader.Execute()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(theirs).T, series.voxels())
    for corner in CORNERS:
        found = (series.grid.affine @ [*corner, 1])[:3] * (-1, -1, 1)
        np.testing.assert_allclose(found, theirs.TransformIndexToPhysicalPoint(corner), atol=1e-4)


def test_enhanced_files_have_each_frame_in_its_place(tmp_path: Path) -> None:
    scanner = Scanner(*OBLIQUE)
    enhanced(tmp_path / "all.dcm", VALUES, scanner, order=[3, 1, 0, 2, 5, 4])
    series = read_series(tmp_path / "all.dcm")
    np.testing.assert_array_equal(series.voxels(), VALUES)  # with an intercept per frame
    assert_placed(series, scanner)
    assert [plane.frame for plane in series.planes] == [2, 1, 3, 0, 5, 4]


def test_a_tilted_gantry_shears_the_affine(tmp_path: Path) -> None:
    scanner = Scanner(shear=0.5)
    classic(tmp_path, VALUES, scanner)
    series = read_series(tmp_path)
    assert_placed(series, scanner)
    assert series.tilt_degrees == pytest.approx(np.degrees(np.arctan(0.5 / 3)))
    np.testing.assert_allclose(series.grid.header.get_best_affine(), series.grid.affine, atol=1e-4)


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    root = tmp_path / ".data"
    for name in ("a/.b/c.dcm", "a/.c.dcm", "a/c.dcm", "d.dcm"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert list(visible_files(root, deep=True)) == [root / "a" / "c.dcm", root / "d.dcm"]


def test_every_slice_has_its_own_rescaling(tmp_path: Path) -> None:
    scanner = Scanner()
    for k in range(6):
        tags = {"RescaleSlope": 0.5 + k, "RescaleIntercept": -k}
        save(tmp_path / f"{k}.dcm", slice_of(scanner.with_tags(**tags), VALUES[..., k].T + 1024, k))
    found = read_series(tmp_path).voxels()
    assert found.dtype == np.float32
    expected = (VALUES + 1024) * (0.5 + np.arange(6)) - np.arange(6)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    steep = slice_of(scanner.with_tags(RescaleSlope=100_000, RescaleIntercept=0), np.full((4, 5), 40_000), 0)
    assert np.unique(read_series(save(tmp_path / "steep" / "0.dcm", steep)).voxels()) == [4e9]  # beyond 32 bits


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_transfer_syntaxes(syntax: UID, tmp_path: Path) -> None:
    for k in range(2):
        data = slice_of(SCANNER, LARGE[..., k].T + 1024, k)
        if syntax == JPEGLosslessSV1:
            save(tmp_path / f"{k}.dcm", data)
            losslessly(tmp_path / f"{k}.dcm")
            continue
        if syntax.is_encapsulated:
            data.compress(syntax)
        else:
            data.file_meta.TransferSyntaxUID = syntax
        if not syntax.is_little_endian:
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
            data["PixelData"].VR = "OW"
        save(tmp_path / f"{k}.dcm", data)
    assert pydicom.dcmread(tmp_path / "1.dcm").file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(read_series(tmp_path).voxels(), LARGE)


def losslessly(path: Path) -> None:
    """Compresses a file as scanners mostly do, which pydicom cannot write."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def test_a_missing_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = slice_of(SCANNER, LARGE[..., 0].T + 1024, 0)
    data.compress(JPEG2000Lossless)
    save(tmp_path / "a.dcm", data)
    decoder = get_decoder(JPEG2000Lossless)
    monkeypatch.setattr(decoder, "_available", {})
    monkeypatch.setattr(decoder, "_unavailable", {"gdcm": ("gdcm>=3.0.10",)})
    with pytest.raises(UserError, match=r"a\.dcm: compressed as JPEG 2000 .*, which no .*gdcm.*ssmvision\[dicom"):
        read_series(tmp_path).voxels()


def test_bits_beyond_those_stored_are_no_values(tmp_path: Path) -> None:
    """Old scanners kept overlays in the upper four of sixteen bits."""
    for k in range(2):
        data = slice_of(SCANNER.with_tags(BitsStored=12, HighBit=11), VALUES[..., k].T + 1024, k)
        stored = np.frombuffer(data.PixelData, np.uint16) | 0x4000
        data.PixelData = stored.astype(np.uint16).tobytes()
        save(tmp_path / f"{k}.dcm", data)
    np.testing.assert_array_equal(read_series(tmp_path).voxels(), VALUES[..., :2])


def test_labels_doses_and_reports_among_the_slices_are_left_out(tmp_path: Path) -> None:
    scanner = Scanner()
    classic(tmp_path, VALUES, scanner)
    structures = meta(Dataset(), RTStructureSetStorage)
    structures.Modality, structures.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    save(tmp_path / "rs.dcm", structures)
    dose = slice_of(replace(scanner, series=generate_uid()), VALUES[..., 0].T, 0)
    dose.Modality, dose.SOPClassUID = "RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2"
    dose.file_meta.MediaStorageSOPClassUID = dose.SOPClassUID
    save(tmp_path / "dose.dcm", dose)
    (tmp_path / "README.txt").write_text("hello")
    np.testing.assert_array_equal(read_series(tmp_path).voxels(), VALUES)


def extra(name: str = "x.dcm", index: float = 2, scanner: Scanner = SCANNER, **tags: Any) -> Callable[[Path], Any]:
    return lambda folder: save(folder / name, slice_of(scanner.with_tags(**tags), VALUES[..., 2].T, index))


def moved(folder: Path) -> None:
    data = pydicom.dcmread(folder / "IM97.dcm")
    data.ImagePositionPatient = [-18.0, *data.ImagePositionPatient[1:]]
    data.save_as(folder / "IM97.dcm")


def retagged(**tags: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = pydicom.dcmread(folder / "IM97.dcm")
        for name, value in tags.items():
            if value is None:
                del data[name]
            else:
                setattr(data, name, value)
        data.save_as(folder / "IM97.dcm")

    return change


def copied(folder: Path) -> None:
    (folder / "copy.dcm").write_bytes((folder / "IM97.dcm").read_bytes())


def multiframe(**tags: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        data = enhanced(folder / "e.dcm", VALUES, SCANNER)
        for name, value in tags.items():
            if value is None:
                del data[name]
            elif callable(value):
                value(data)
            else:
                setattr(data, name, value)
        save(folder / "e.dcm", data)

    return change


def alone(**tags: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        data = slice_of(SCANNER, VALUES[..., 0].T, 0)
        for name in tags:
            del data[name]
        save(folder / "one.dcm", data)

    return change


ZOO: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing slice": (
        lambda f: (f / "IM96.dcm").unlink(),
        r"IM97\.dcm and IM95\.dcm are 6\.000 mm apart, the others 3",
    ),
    "repeated place": (extra(), r"(x|IM97)\.dcm and (x|IM97)\.dcm lie at one place"),
    "copy": (copied, r"IM97\.dcm and copy\.dcm are copies of one instance"),
    "uneven": (extra(index=5.7), r"IM94\.dcm and x\.dcm are 2\.100 mm apart, the others 3\.000"),
    "moved aside": (moved, r"IM97\.dcm lies 2\.000 mm away from the line through the other slices"),
    "mixed orientation": (
        extra(scanner=replace(SCANNER, across=(0.0, 1.0, 0.0), down=(0.0, 0.0, -1.0))),
        r"x\.dcm: Ima",
    ),
    "other size": (extra(Rows=6), r"x\.dcm: Rows is 6, but 9 in IM94\.dcm"),
    "other pixel size": (extra(PixelSpacing=[1, 1]), r"x\.dcm: PixelSpacing is \[1, 1\], but \[0\.8, 0\.7\]"),
    "several series": (
        extra(scanner=Scanner().with_tags(SeriesNumber=8)),
        r"2 series: number 3 \(CT, 6 .*number 8 \(CT, 1",
    ),
    "no position": (retagged(ImagePositionPatient=None), r"IM97\.dcm: has no ImagePositionPatient"),
    "no orientation": (retagged(ImageOrientationPatient=None), r"IM97\.dcm: has no ImageOrientationPatient"),
    "no pixel size": (retagged(PixelSpacing=None), r"IM97\.dcm: has no PixelSpacing"),
    "no series": (retagged(SeriesInstanceUID=None), r"IM97\.dcm: has no SeriesInstanceUID"),
    "zero orientation": (retagged(ImageOrientationPatient=[0] * 6), r"IM97\.dcm: ImageOrientationPatient is \[0\.0, 0"),
    "short position": (retagged(ImagePositionPatient=[1, 2]), r"IM97\.dcm: its geometry cannot be read \(2 numbers"),
    "lookup table": (retagged(ModalityLUTSequence=[Dataset()]), r"IM97\.dcm: its values go through a ModalityLUT"),
    "other coordinates": (
        retagged(FrameOfReferenceUID="1.2.3"),
        r"IM97\.dcm: has another FrameOfReferenceUID than IM94",
    ),
    "mosaic": (retagged(ImageType=["ORIGINAL", "PRIMARY", "MOSAIC"]), r"IM97\.dcm: is a mosaic of slices"),
    "inverted": (retagged(PhotometricInterpretation="MONOCHROME1"), r"IM97\.dcm: its pixels are MONOCHROME1"),
    "unknown depth": (alone(SliceThickness=None), r"one\.dcm: one slice with no SliceThickness"),
    "enhanced, one frame lost": (
        multiframe(drop=lambda d: d.PerFrameFunctionalGroupsSequence.pop(2)),
        r"e\.dcm: holds 6 frames, but places 5",
    ),
    "enhanced, frame without place": (
        multiframe(drop=lambda d: d.PerFrameFunctionalGroupsSequence[2].pop("PlanePositionSequence")),
        r"e\.dcm: has no ImagePositionPatient",
    ),
    "frames without places": (
        multiframe(PerFrameFunctionalGroupsSequence=None),
        r"e\.dcm: holds 6 frames and does not say where each lies",
    ),
    "enhanced, repeated frame": (
        multiframe(
            same=lambda d: setattr(
                d.PerFrameFunctionalGroupsSequence[3],
                "PlanePositionSequence",
                d.PerFrameFunctionalGroupsSequence[2].PlanePositionSequence,
            )
        ),
        r"e\.dcm \(frame [34]\) and e\.dcm \(frame [34]\) lie at one place",
    ),
    "broken off at its start": (
        lambda f: (f / "IM77").write_bytes(b"\0" * 100),
        r"IM77: has 100 bytes, too few for DI",
    ),
    "no DICOM": (lambda f: (f / "IM77.dcm").write_bytes(b"\0" * 1000), r"IM77\.dcm: not a readable DICOM file"),
}


@pytest.mark.parametrize(("change", "message"), ZOO.values(), ids=ZOO)
def test_what_is_no_volume_is_refused_by_name(change: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "ct"
    classic(folder, VALUES, SCANNER)
    change(folder)
    with pytest.raises(UserError, match=message):
        read_series(folder).voxels()


@pytest.mark.parametrize("last", [True, False], ids=["end slice", "inner slice"])
@pytest.mark.parametrize("syntax", [None, RLELossless], ids=["plain", "compressed"])
def test_truncated_anywhere_is_refused_by_name(syntax: UID | None, last: bool, tmp_path: Path) -> None:
    classic(tmp_path, VALUES, SCANNER)
    path = tmp_path / ("IM94.dcm" if last else "IM97.dcm")
    data = pydicom.dcmread(path)
    if syntax is not None:
        data.compress(syntax, generate_instance_uid=False)
        data.save_as(path)
    whole = path.read_bytes()
    # The last eight bytes of compressed pixels only say that they end.
    for size in np.linspace(0, len(whole) - 9, 20).astype(int):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=path.name.replace(".", r"\.")):
            read_series(tmp_path).voxels()
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_series(tmp_path).voxels(), VALUES)


@pytest.mark.parametrize("form", ["classic", "enhanced", "contours", "segmentation"])
def test_damaged_bytes_are_refused_and_never_crash(form: str, tmp_path: Path) -> None:
    classic(tmp_path / "ct", VALUES, SCANNER)
    series, labels = read_series(tmp_path / "ct"), np.zeros(VALUES.shape, np.uint8)
    labels[2:4, 3:5, 1:3] = 1
    path = tmp_path / ("ct/IM97.dcm" if form == "classic" else "one.dcm")
    if form == "enhanced":
        enhanced(path, VALUES, SCANNER)
    elif form == "contours":
        rtstruct(path, SCANNER, {"GTV": [box(SCANNER, (1.5, 1.5), (5.5, 5.5), 2)]})
    elif form == "segmentation":
        write_segmentation(path, labels, series, {"background": 0, "GTV": 1}, Algorithm("n", "0"))
    rng, whole, refused = np.random.default_rng(0), path.read_bytes(), list[str]()
    for _ in range(60):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(0, len(content), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(content.tobytes())
        try:
            if form in ("classic", "enhanced"):
                assert read_series(path if form == "enhanced" else path.parent).voxels().shape == VALUES.shape
            else:
                assert label_map(open_labels(path), series, {"tumour": ["GTV"]}).shape == VALUES.shape
        except UserError as error:
            refused.append(str(error))
    assert 10 < len(refused) < 60
    assert all(path.name in text or "IM" in text for text in refused)
