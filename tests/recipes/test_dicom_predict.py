"""Prediction on DICOM: segmentations that refer to their slices, and nothing of a patient where it need not be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.dicom.labels import open_labels
from ssmvision.recipes.dicom.prediction import holds_dicom
from ssmvision.recipes.dicom.seg_writing import Algorithm, write_segmentation
from ssmvision.recipes.dicom.series import read_series
from ssmvision.recipes.segmentation import predict
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import ModelConfig, PredictConfig
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.weights import ModelCard, save_model
from tests.recipes.dicom_files import OBLIQUE, SECRET, Scanner, classic, enhanced, hits, plant

pytestmark = pytest.mark.usefixtures("one_thread")

VALUES = np.random.default_rng(0).integers(-1000, 2000, (9, 8, 7))
LABELS = {"background": 0, "tumour": 1, "lung": 2}


def save_random_model(folder: Path, channel: str = "CT") -> Path:
    torch.manual_seed(0)
    model = ModelConfig(features_per_stage=(2, 4), n_conv_per_stage=1, n_conv_per_stage_decoder=1, mixer="none")
    architecture = plan_network(model, (8, 8, 8), (1.0, 1.0, 1.0), 1, 3)
    how = Preprocessing("RAS", None, (ChannelScale("zscore"),))
    save_model(folder, build_network(architecture), ModelCard(architecture, (channel,), LABELS, (8, 8, 8), how))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"))


def run(model: Path, source: Path, out: Path, **changes: Any) -> list[Path]:
    return predict.run(replace(PredictConfig(model, source, out, device="cpu"), **changes))


def segmentation_labels(path: Path, source: Path) -> NDArray[np.uint8]:
    labels, series = open_labels(path), read_series(source)
    assert labels.names == {1: "tumour", 2: "lung"}
    return np.sum([number * labels.mask(number, series).astype(np.uint8) for number in labels.names], axis=0)


@pytest.mark.parametrize("form", ["oblique", "enhanced", "tilted"])
def test_segmentation_is_the_nifti_prediction_on_the_same_slices(form: str, model: Path, tmp_path: Path) -> None:
    scanner = Scanner(shear=0.4) if form == "tilted" else Scanner(*OBLIQUE)
    source = tmp_path / "ct"
    if form == "enhanced":
        enhanced(source / "all.dcm", VALUES, scanner, order=[3, 1, 0, 2, 6, 5, 4])
    else:
        classic(source, VALUES, scanner)
    (segmentation,) = run(model, source, tmp_path / "seg")
    assert segmentation == tmp_path / "seg" / "case_001.dcm"
    # The same voxels as NIfTI, placed by DICOM's own formula.
    columns = [scanner.place(*axis) - scanner.place(0, 0, 0) for axis in np.eye(3)]
    affine = np.diag([-1.0, -1, 1, 1]) @ np.vstack([np.column_stack([*columns, scanner.place(0, 0, 0)]), [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(VALUES.astype(np.int16), affine), tmp_path / "ct.nii.gz")
    (nifti,) = run(model, tmp_path / "ct.nii.gz", tmp_path / "nifti.nii.gz")
    expected = np.asarray(nibabel.load(nifti).dataobj)
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(segmentation_labels(segmentation, source), expected)
    (direct,) = run(model, source, tmp_path / "direct.nii.gz")
    image = nibabel.load(direct)
    np.testing.assert_array_equal(np.asarray(image.dataobj), expected)
    np.testing.assert_allclose(image.affine, affine, atol=1e-4)


def test_every_frame_refers_to_the_slice_it_lies_on(model: Path, tmp_path: Path) -> None:
    scanner = Scanner()
    slices = {data.SOPInstanceUID: data for data in classic(tmp_path / "ct", VALUES, scanner)}
    (path,) = run(model, tmp_path / "ct", tmp_path / "out.dcm")
    data = pydicom.dcmread(path)
    assert (data.StudyInstanceUID, data.FrameOfReferenceUID) == (scanner.study, scanner.frame)
    assert data.SeriesInstanceUID != scanner.series
    assert data.SOPInstanceUID not in slices
    assert data.ReferencedSeriesSequence[0].SeriesInstanceUID == scanner.series
    assert data.Manufacturer == "ssmvision"
    for frame in data.PerFrameFunctionalGroupsSequence:
        source = slices[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == source.ImagePositionPatient
    assert pydicom.dcmread(run(model, tmp_path / "ct", tmp_path / "again.dcm")[0]).SOPInstanceUID != data.SOPInstanceUID


def test_highdicom_reads_the_same_labels(model: Path, tmp_path: Path) -> None:
    from highdicom.seg import segread

    classic(tmp_path / "ct", VALUES, Scanner(*OBLIQUE))
    (path,) = run(model, tmp_path / "ct", tmp_path / "out.dcm")
    theirs = segread(path).get_volume(combine_segments=True)
    ours, grid = segmentation_labels(path, tmp_path / "ct"), read_series(tmp_path / "ct").grid
    for index in np.argwhere(theirs.array):
        place = np.append((theirs.affine @ [*index, 1])[:3] * (-1, -1, 1), 1)
        voxel = tuple(np.rint(np.linalg.inv(grid.affine) @ place).astype(int)[:3])
        assert ours[voxel] == theirs.array[tuple(index)]
    assert np.count_nonzero(theirs.array) == np.count_nonzero(ours)


def test_a_folder_of_series_goes_on_after_a_bad_one(model: Path, tmp_path: Path) -> None:
    for name in ("anna", "bert", "carl"):
        classic(tmp_path / "in" / name, VALUES, Scanner())
    (tmp_path / "in" / "bert" / "IM96.dcm").unlink()
    mapping = tmp_path / "mapping.csv"
    with pytest.raises(
        UserError, match=r"1 of 3 case\(s\) failed; .*bert: IM97\.dcm and IM95\.dcm are 6\.000 mm apart"
    ):
        run(model, tmp_path / "in", tmp_path / "out", mapping=mapping)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case_001.dcm", "case_003.dcm"]
    assert mapping.read_text().splitlines()[2] == f"case_002.dcm,{tmp_path / 'in' / 'bert'}"
    assert mapping.stat().st_mode & 0o077 == 0


def test_one_of_several_series_is_chosen_by_number(model: Path, tmp_path: Path) -> None:
    classic(tmp_path / "in", VALUES, Scanner())
    other = classic(tmp_path / "b", VALUES[..., :3], Scanner().with_tags(SeriesNumber=4, Modality="MR"))
    for file in (tmp_path / "b").iterdir():
        file.rename(tmp_path / "in" / f"b{file.name}")
    (tmp_path / "b").rmdir()
    with pytest.raises(UserError, match=r"holds 2 series: .*number 4 \(MR, 3 file\(s\) of 9 x 8, .*--series NUMBER"):
        run(model, tmp_path / "in", tmp_path / "out")
    assert main(["predict", str(model), str(tmp_path / "in"), str(tmp_path / "o.dcm"), "--series", "3"]) == 0
    assert pydicom.dcmread(tmp_path / "o.dcm").SeriesNumber == 301
    with pytest.raises(UserError, match="is of the modality MR; the model expects CT"):
        run(model, tmp_path / "in", tmp_path / "out", series=str(other[0].SeriesInstanceUID))
    with pytest.raises(UserError, match="0 series have the number or UID '9'; there are: number 3"):
        run(model, tmp_path / "in", tmp_path / "out", series="9")


def test_inputs_and_formats_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "ct"
    classic(source, VALUES, Scanner())
    nibabel.save(nibabel.Nifti1Image(VALUES.astype(np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    assert not holds_dicom(tmp_path)  # its own volumes come first
    for arguments, message in (
        ((source, tmp_path / "o.nii.gz", "dicom"), r"ending does not fit output_format dicom"),
        ((source, tmp_path / "o.dcm", "nifti"), r"ending does not fit output_format nifti"),
        ((source, source, "auto"), "is the input folder"),
        ((tmp_path / "a.nii.gz", tmp_path / "o", "dicom"), "holds no DICOM, which output_format is for"),
    ):
        with pytest.raises(UserError, match=message):
            run(model, arguments[0], arguments[1], output_format=arguments[2])
    run(model, source, tmp_path / "o.dcm")
    with pytest.raises(UserError, match=r"o\.dcm: exists already"):
        run(model, source, tmp_path / "o.dcm")
    for data in (pydicom.dcmread(path) for path in sorted(source.iterdir())):
        del data.FrameOfReferenceUID
        data.save_as(source / f"IM{100 - data.InstanceNumber}.dcm")
    with pytest.raises(
        UserError, match=r"IM99\.dcm: has no FrameOfReferenceUID, which a DICOM-SEG .*--output_format nifti"
    ):
        run(model, source, tmp_path / "p.dcm")
    run(model, source, tmp_path / "p", output_format="nifti")
    assert (tmp_path / "p" / "case_001.nii.gz").is_file()


def test_an_empty_label_map_and_damage_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classic(tmp_path / "ct", VALUES, Scanner())
    series, labels = read_series(tmp_path / "ct"), np.zeros(VALUES.shape, np.uint8)
    write_segmentation(tmp_path / "empty.dcm", labels, series, LABELS, Algorithm("n", "0"))
    assert not segmentation_labels(tmp_path / "empty.dcm", tmp_path / "ct").any()
    labels[3:5, 2:6, 1:4] = 1
    whole = Dataset.save_as

    def damaged(self: Dataset, *arguments: Any, **settings: Any) -> None:
        self.PixelData = bytes(len(self.PixelData))
        whole(self, *arguments, **settings)

    monkeypatch.setattr(Dataset, "save_as", damaged)
    with pytest.raises(UserError, match="read back differs"):
        write_segmentation(tmp_path / "bad.dcm", labels, series, LABELS, Algorithm("n", "0"))
    assert not (tmp_path / "bad.dcm").exists()


# What a segmentation has to repeat, so that archives file it with its images.
DEMANDED = {
    "PatientName",
    "PatientID",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "PositionReferenceIndicator",
}


def test_no_patient_in_outputs_and_logs(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "in" / SECRET / "1"
    for data in classic(source, VALUES, Scanner()):
        plant(data)
        data.save_as(source / f"{SECRET}{data.InstanceNumber}", enforce_file_format=True)
    for file in source.glob("IM*"):
        file.unlink()
    planted = pydicom.dcmread(source / f"{SECRET}1")
    assert sum(SECRET in str(element.value) for element in planted) > 150
    out = tmp_path / "out"
    for form in ("dicom", "nifti"):
        words = ["predict", str(model), str(tmp_path / "in"), str(out), "--output_format", form, "--uncertainty"]
        assert main([*words, "--device", "cpu", "--overwrite"]) == 0
    captured = capfd.readouterr()
    assert "case_001" in captured.err
    assert SECRET not in captured.out + captured.err
    written = [path for path in tmp_path.rglob("*") if path.is_file() and source not in path.parents]
    assert {path.name for path in written} == {"case_001.dcm", "case_001.nii.gz", "case_001_uncertainty.nii.gz"}
    assert [path.name for path in written if hits(path)] == ["case_001.dcm"]
    found: set[str] = set()

    def look(_: Dataset, element: Any) -> None:
        if element.VR != "SQ" and SECRET in str(element.value):
            found.add(element.keyword)

    pydicom.dcmread(out / "case_001.dcm").walk(look)
    assert {"PatientName", "PatientID"} <= found <= DEMANDED
