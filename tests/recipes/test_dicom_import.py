"""`ssmvision import`: contours and segmentations become label maps on the grid of their series, without a patient."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.checking.command import check
from ssmvision.recipes.checking.config import CheckConfig
from ssmvision.recipes.dicom.import_config import ImportConfig
from ssmvision.recipes.dicom.importing import run
from ssmvision.recipes.dicom.labels import label_map, matching, open_labels
from ssmvision.recipes.dicom.seg_writing import Algorithm, write_segmentation
from ssmvision.recipes.dicom.series import Series, read_series
from ssmvision.recipes.segmentation.datalist import read_dataset
from tests.recipes.dicom_files import OBLIQUE, SECRET, Scanner, box, classic, hits, plant, rtstruct, save

VALUES = np.random.default_rng(3).integers(-1000, 2000, (12, 11, 6))
# A rectangle between voxel centres: columns 2 to 8 and rows 3 to 7 lie inside of it.
OUTER, INNER = ((1.5, 2.5), (8.5, 7.5)), ((3.5, 3.5), (5.5, 5.5))


def expected(*slices: int, hole: bool = False) -> NDArray[np.uint8]:
    mask = np.zeros(VALUES.shape, np.uint8)
    mask[2:9, 3:8, slices] = 1
    if hole:
        mask[4:6, 4:6, slices] = 0
    return mask


def read(tmp_path: Path, scanner: Scanner, contours: Sequence[list[float]], **settings: Any) -> NDArray[np.uint8]:
    classic(tmp_path / "ct", VALUES, scanner)
    rtstruct(tmp_path / "rs.dcm", scanner, {"GTV": contours}, **settings)
    return label_map(open_labels(tmp_path / "rs.dcm"), read_series(tmp_path / "ct"), {"tumour": ["GTV"]})


@pytest.mark.parametrize(
    "scanner", [Scanner(), Scanner(*OBLIQUE), Scanner(shear=0.4)], ids=["axial", "oblique", "tilt"]
)
def test_contours_fill_the_voxels_whose_centres_they_enclose(scanner: Scanner, tmp_path: Path) -> None:
    found = read(tmp_path, scanner, [box(scanner, *OUTER, k) for k in (1, 2, 4)])
    np.testing.assert_array_equal(found, expected(1, 2, 4))


def test_inner_contours_are_holes(tmp_path: Path) -> None:
    scanner = Scanner()
    found = read(tmp_path, scanner, [box(scanner, *edges, k) for k in (2, 3) for edges in (OUTER, INNER)])
    np.testing.assert_array_equal(found, expected(2, 3, hole=True))


def test_a_keyhole_is_a_hole(tmp_path: Path) -> None:
    """One contour: the outer one, a channel of no width, the inner one, and back."""
    scanner = Scanner()
    outer, inner = box(scanner, *OUTER, 2), box(scanner, *INNER, 2)
    keyhole = [*outer, *outer[:3], *inner[:3], *inner[9:], *inner[6:9], *inner[3:6], *inner[:3]]
    np.testing.assert_array_equal(read(tmp_path, scanner, [keyhole]), expected(2, hole=True))


def test_contours_may_be_a_quarter_of_a_slice_off(tmp_path: Path) -> None:
    scanner = Scanner()
    np.testing.assert_array_equal(read(tmp_path, scanner, [box(scanner, *OUTER, 2.2)]), expected(2))


@pytest.mark.parametrize(
    ("contour", "settings", "message"),
    [
        (box(Scanner(), *OUTER, 2.5), {}, r"rs\.dcm: region 'GTV', contour 1 lies 0\.50 slices off slice [34]"),
        (box(Scanner(), *OUTER, 7), {}, r"contour 1 lies outside of the series"),
        (box(Scanner(), (1, 1), (30, 4), 2), {}, r"contour 1 lies outside of the series"),
        (box(Scanner(), *OUTER, 2)[:6], {}, r"contour 1 has 2 point\(s\), which enclose nothing"),
        (box(Scanner(), *OUTER, 2)[:11], {}, r"contour 1: its points cannot be read"),
        (box(Scanner(), *OUTER, 2), {"kind": "OPEN_PLANAR"}, r"contour 1 is OPEN_PLANAR; only CLOSED_PLANAR"),
    ],
    ids=["between slices", "above", "aside", "a line", "cut", "open"],
)
def test_contours_that_fill_nothing_here_are_refused(
    contour: list[float], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, Scanner(), [contour], **settings)


def test_a_contour_on_another_slice_than_it_refers_to(tmp_path: Path) -> None:
    scanner = Scanner()
    slices = classic(tmp_path / "ct", VALUES, scanner)
    data = rtstruct(tmp_path / "rs.dcm", scanner, {"GTV": [box(scanner, *OUTER, 2)]})
    image = pydicom.Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = slices[3].SOPClassUID, slices[3].SOPInstanceUID
    data.ROIContourSequence[0].ContourSequence[0].ContourImageSequence = [image]
    save(tmp_path / "rs.dcm", data)
    with pytest.raises(UserError, match=r"contour 1 refers to IM96\.dcm, but lies on IM97\.dcm"):
        label_map(open_labels(tmp_path / "rs.dcm"), read_series(tmp_path / "ct"), {"tumour": ["GTV"]})


def test_contours_in_other_coordinates(tmp_path: Path) -> None:
    scanner = Scanner()
    classic(tmp_path / "ct", VALUES, scanner)
    data = rtstruct(tmp_path / "rs.dcm", scanner, {"GTV": [box(scanner, *OUTER, 2)]})
    data.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = scanner.frame
    save(tmp_path / "rs.dcm", data)
    series = read_series(tmp_path / "ct")
    np.testing.assert_array_equal(label_map(open_labels(tmp_path / "rs.dcm"), series, {"x": ["GTV"]}), expected(2))
    data.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"
    save(tmp_path / "rs.dcm", data)
    with pytest.raises(UserError, match=r"rs\.dcm: region 'GTV' has another frame of reference than .*ct"):
        label_map(open_labels(tmp_path / "rs.dcm"), series, {"x": ["GTV"]})
    findings = check(CheckConfig(tmp_path, workers=1)).findings
    assert sum("another frame of reference" in finding.problem for finding in findings) == 1


def test_names_match_exactly_or_as_globs() -> None:
    names = {1: "GTV", 2: "gtv", 3: "GTV-1 ", 4: "Lung_L"}
    assert matching(names, ["GTV"]) == [1]
    assert matching(names, ["GTV-1"]) == [3]
    assert matching(names, ["gtv*"]) == [1, 2, 3]
    assert matching(names, ["lung_?", "GTV"]) == [4, 1]
    assert matching(names, ["heart"]) == []


def dataset(root: Path, regions: Sequence[str] = ("GTV-1", "Lung")) -> None:
    """Two patients: one with contours, one with a segmentation; and a scout that nobody labelled."""
    first, second = Scanner(*OBLIQUE), Scanner()
    classic(root / "a" / "ct", VALUES, first)
    places = {"GTV-1": (OUTER, 2), "Lung": (INNER, 4)}
    rtstruct(root / "a" / "rs.dcm", first, {name: [box(first, *places[name][0], places[name][1])] for name in regions})
    classic(root / "b", VALUES, second)
    write_segmentation(
        root / "b.dcm",
        expected(1) + 2 * expected(3),
        read_series(root / "b"),
        {"GTV-1": 1, "Lung": 2},
        Algorithm("n", "0"),
    )
    classic(root / "scout", VALUES[..., :3], Scanner())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dicom")
    dataset(root)
    return root


def imported(source: Path, out: Path, **settings: Any) -> Path:
    return run(replace(ImportConfig(source, out, {"tumour": "gtv*", "lung": ["Lung", "other"]}), **settings))


def test_a_folder_to_train_on(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["import", str(source), str(tmp_path), "--roi.tumour", "GTV-1", "--roi.lung", "[Lung]"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "[1/2] case_001: 12 x 11 x 6 voxels of 0.7 x 0.8 x 3 mm, tumour 0.0588 ml, lung 0.00672 ml" in said
    assert "left out 1 series without labels" in said
    found = read_dataset(tmp_path)
    assert (found.channels, found.labels) == (("CT",), {"background": 0, "tumour": 1, "lung": 2})
    assert [case.id for case in found.training] == ["case_001", "case_002"]
    for case, wanted in zip(found.training, (expected(2), expected(1) + 2 * expected(3)), strict=True):
        image, label = nibabel.load(case.images[0]), nibabel.load(case.label)
        np.testing.assert_array_equal(np.asarray(image.dataobj), VALUES)
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(image.affine, label.affine)
        if case.id == "case_001":
            wanted[4:6, 4:6, 4] = 2
        np.testing.assert_array_equal(np.asarray(label.dataobj), wanted)
    theirs, ours = SimpleITK.ReadImage(str(found.training[0].images[0])), Scanner(*OBLIQUE)
    for corner in ((0, 0, 0), (11, 10, 5), (11, 0, 0)):
        np.testing.assert_allclose(theirs.TransformIndexToPhysicalPoint(corner), ours.place(*corner), atol=1e-4)


def test_without_rois_those_found_are_listed(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"regions found: 'GTV-1' \(2 of 2 series\), 'Lung' \(2 of 2 series\)"):
        run(ImportConfig(source, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_unlabelled_series_may_be_the_test_set_and_a_mapping_is_private(source: Path, tmp_path: Path) -> None:
    imported(source, tmp_path / "out", unlabelled="test", mapping=tmp_path / "cases.csv", channel="mine")
    found = read_dataset(tmp_path / "out")
    assert ([case.id for case in found.test], found.channels) == (["case_003"], ("mine",))
    assert (tmp_path / "cases.csv").read_text().splitlines()[1] == f"case_001,{source / 'a' / 'ct'},IM94.dcm,6,rs.dcm"
    assert (tmp_path / "cases.csv").stat().st_mode & 0o077 == 0
    with pytest.raises(UserError, match=r"case_001_0000\.nii\.gz: exists already"):
        imported(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"case_003_0000\.nii\.gz: would be taken for a case of this import"):
        imported(source, tmp_path / "out", overwrite=True)
    imported(source, tmp_path / "out", overwrite=True, unlabelled="test")


def test_overlap_is_refused_unless_it_is_said_who_wins(tmp_path: Path) -> None:
    scanner = Scanner()
    classic(tmp_path / "ct", VALUES, scanner)
    edges = {"a": box(scanner, *OUTER, 2), "b": box(scanner, *INNER, 2)}
    rtstruct(tmp_path / "rs.dcm", scanner, {name: [points] for name, points in edges.items()})
    labels, series = open_labels(tmp_path / "rs.dcm"), read_series(tmp_path / "ct")
    rois = {"one": ["a"], "two": ["b"]}
    with pytest.raises(UserError, match=r"4 voxel\(s\) belong to 'two' and to one; say .* --overlap first or"):
        label_map(labels, series, rois)
    assert label_map(labels, series, rois, "first")[4, 4, 2] == 1
    assert label_map(labels, series, rois, "last")[4, 4, 2] == 2


def test_what_should_be_looked_at_is_told_without_names(tmp_path: Path) -> None:
    scanner, told = Scanner(), list[str]()
    classic(tmp_path / "ct", VALUES, scanner)
    crossing = [box(scanner, *OUTER, 1), box(scanner, (4.5, 4.5), (10.5, 9.5), 1), box(scanner, *OUTER, 4)]
    rtstruct(tmp_path / "rs.dcm", scanner, {SECRET: crossing})
    label_map(open_labels(tmp_path / "rs.dcm"), read_series(tmp_path / "ct"), {"x": [f"{SECRET}*"]}, note=told.append)
    assert told == [
        "x: contours cross on slice 2; what two of them cover is taken as a hole",
        "x: 2 slice(s) between the first and the last have no contour, such as slice 3",
    ]


def drop_slice(root: Path) -> None:
    (root / "a" / "ct" / "IM97.dcm").unlink()


def cut_file(root: Path) -> None:
    (root / "a" / "ct" / "IM97.dcm").write_bytes(b"DICM")


def second_file(root: Path) -> None:
    (root / "a" / "rs2.dcm").write_bytes((root / "a" / "rs.dcm").read_bytes())


def lost_labels(root: Path) -> None:
    rtstruct(root / "lost.dcm", Scanner(), {"GTV-1": []})


def other_modality(root: Path) -> None:
    for path in (root / "b").iterdir():
        data = pydicom.dcmread(path)
        data.Modality = "MR"
        data.save_as(path)


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        (drop_slice, {}, r"case_001: .*ct: IM98\.dcm and IM96\.dcm are 6\.000 mm apart.*no|no dataset\.json written"),
        (cut_file, {}, r"IM97\.dcm: not a readable DICOM file"),
        (second_file, {}, r"2 files hold wanted regions: .*rs\.dcm, .*rs2\.dcm; keep the one that counts"),
        (lost_labels, {}, r"lost\.dcm: refers to no series below"),
        (other_modality, {}, r"labelled series are of CT and MR; choose one by --modality"),
        (nothing, {"roi": {"heart": "H*"}}, r"has no region for heart, but 'GTV-1', 'Lung'; name it by --roi, or take"),
        (nothing, {"roi": {"background": "H*"}}, "background has id 0"),
        (nothing, {"modality": "PT"}, r"0 series with contours or segmentations found; there are 3 of CT"),
        (nothing, {"source": Path("nowhere")}, r"nowhere: no such folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_cases_and_settings(
    change: Callable[[Path], None], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    dataset(tmp_path / "in")
    change(tmp_path / "in")
    with pytest.raises(UserError, match=message):
        imported(**{"source": tmp_path / "in", "out": tmp_path / "out", **settings})
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_missing_regions_may_be_empty(tmp_path: Path) -> None:
    dataset(tmp_path / "in", regions=("GTV-1",))
    with pytest.raises(UserError, match=r"rs\.dcm: has no region for lung"):
        imported(tmp_path / "in", tmp_path / "out")
    imported(tmp_path / "in", tmp_path / "empty", missing="background")
    assert np.asarray(nibabel.load(tmp_path / "empty" / "labelsTr" / "case_001.nii.gz").dataobj).max() == 1


def test_a_grid_that_reads_back_elsewhere_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(self: Series) -> NDArray[Any]:
        self.grid.header["qoffset_x"] += 1
        self.grid.header["srow_x"][3] += 1
        return VALUES

    monkeypatch.setattr(Series, "voxels", shifted)
    with pytest.raises(UserError, match=r"case_001_0000\.nii\.gz: reads back with IM\d+\.dcm 1 mm aside"):
        imported(source, tmp_path)


def test_no_patient_in_an_import(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in" / SECRET
    scanner = Scanner()
    for data in classic(root / "ct", VALUES, scanner):
        plant(data)
        data.save_as(root / "ct" / f"{SECRET}{data.InstanceNumber}", enforce_file_format=True)
    for file in (root / "ct").glob("*.dcm"):
        file.unlink()
    rtstruct(root / f"{SECRET}.dcm", scanner, {f"GTV {SECRET}": [box(scanner, *OUTER, 2), box(scanner, *OUTER, 4)]})
    assert main(["import", str(tmp_path / "in"), str(tmp_path / "out"), "--roi.tumour", "gtv*"]) == 0
    captured = capfd.readouterr()
    assert "1 slice(s) between" in captured.err
    assert SECRET not in captured.out + captured.err
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) == 3
    assert not any(hits(path) or SECRET in str(path.relative_to(tmp_path)) for path in written)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["numTraining"] == 1
