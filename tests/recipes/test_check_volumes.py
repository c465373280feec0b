from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from ssmvision.cli import main
from ssmvision.recipes.checking.command import Report, check
from ssmvision.recipes.checking.config import CheckConfig
from ssmvision.recipes.checking.findings import Finding
from tests.recipes.synthetic import ball, save, write_description

SHAPE = (10, 12, 8)
AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def shifted(x_mm: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += x_mm
    return affine


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A flawless nnU-Net raw dataset of three cases."""
    for i in range(3):
        image, mask = ball(SHAPE, seed=i)
        save(tmp_path / "imagesTr" / f"c{i}_0000.nii.gz", image, AFFINE)
        save(tmp_path / "labelsTr" / f"c{i}.nii.gz", mask, AFFINE)
    write_description(tmp_path, numTraining=3)
    return tmp_path


def report(root: Path, **settings: Any) -> Report:
    return check(CheckConfig(root, workers=1, **settings))


def only(found: Report, level: str = "error") -> Finding:
    findings = [finding for finding in found.findings if finding.level == level]
    assert len(findings) == 1, findings
    return findings[0]


def image(raw: Path) -> Path:
    return raw / "imagesTr" / "c1_0000.nii.gz"


def label(raw: Path) -> Path:
    return raw / "labelsTr" / "c1.nii.gz"


def test_a_flawless_dataset_has_no_findings(raw: Path) -> None:
    found = report(raw)
    assert found.findings == ()
    assert [case.id for case in found.cases] == ["c0", "c1", "c2"]
    first = found.cases[0]
    assert (first.shape, first.spacing_mm, first.orientation, first.channels) == (SHAPE, (1.0, 1.5, 2.0), "RAS", 1)
    assert set(first.labels) == {0, 1}
    assert sum(first.labels.values()) == np.prod(SHAPE)


def noise() -> np.ndarray:
    return ball(SHAPE, seed=1)[0]


def mask() -> np.ndarray:
    return ball(SHAPE, seed=1)[1]


def with_value(data: np.ndarray, value: float) -> np.ndarray:
    data = data.astype(np.float32)
    data[2, 3, 4] = value
    return data


@pytest.mark.parametrize(
    ("data", "affine", "problem", "fix"),
    [
        (mask()[:-1], AFFINE, "shape 9 x 12 x 8, but its image c1_0000.nii.gz has 10 x 12 x 8", "resample"),
        (mask(), np.diag([1.0, 1.5, 2.5, 1.0]), "voxel size 1 x 1.5 x 2.5 mm, but its image", "copy the header"),
        (mask(), shifted(3.0), "the affine places a corner 3 mm from where", "copy"),
        (mask(), AFFINE @ np.diag([-1, 1, 1, 1]), "the affine places a corner 18 mm from where", "copy the header"),
        (with_value(mask(), 0.5), AFFINE, "1 voxel(s) are no whole numbers, such as 0.5", "nearest neighbour"),
        (with_value(mask(), 7), AFFINE, "ids outside the list [0, 1], with their voxels: {7: 1}", "dataset.json"),
        (with_value(mask(), -1), AFFINE, "ids outside the list [0, 1], with their voxels: {-1: 1}", "correct the map"),
        (with_value(mask(), np.nan), AFFINE, "1 voxel(s) are NaN or infinite", "give every voxel an id"),
        (np.stack([mask()] * 2, -1), AFFINE, "a label map with four axes, 10 x 12 x 8 x 2", "one id per voxel"),
    ],
)
def test_wrong_label_maps(raw: Path, data: np.ndarray, affine: np.ndarray, problem: str, fix: str) -> None:
    save(label(raw), data, affine)
    finding = only(report(raw))
    assert finding.file == label(raw)
    assert finding.case == "c1"
    assert problem in finding.problem
    assert fix in finding.fix


@pytest.mark.parametrize(
    ("data", "problem", "fix"),
    [
        (with_value(noise(), np.nan), "1 voxel(s) are NaN and 0 infinite, the first at [2, 3, 4]", "replace"),
        (with_value(noise(), -np.inf), "0 voxel(s) are NaN and 1 infinite", "replace"),
        (np.zeros(SHAPE, np.float32), "every voxel is 0.0", "export it again"),
        (np.stack([noise()] * 3, -1), "has four axes, 10 x 12 x 8 x 3, where one file per channel", "split it"),
    ],
)
def test_wrong_images(raw: Path, data: np.ndarray, problem: str, fix: str) -> None:
    save(image(raw), data, AFFINE)
    finding = only(report(raw))
    assert (finding.file, finding.case) == (image(raw), "c1")
    assert problem in finding.problem
    assert fix in finding.fix


@pytest.mark.parametrize("keep", [100, 2000])
def test_truncated_files(raw: Path, keep: int) -> None:
    path = image(raw)
    path.write_bytes(path.read_bytes()[:keep])
    finding = only(report(raw))
    assert finding.file == path
    assert finding.fix == "fetch or export it again"


def test_rounding_in_the_affine_is_tolerated_as_in_training(raw: Path) -> None:
    rng = np.random.default_rng(0)
    affine = AFFINE.copy()
    affine[:3] += rng.uniform(-5e-4, 5e-4, (3, 4))
    save(label(raw), mask(), affine)
    assert [f for f in report(raw).findings if f.level == "error"] == []
    save(label(raw), mask(), np.diag([1.0, 1.5, 2.01, 1.0]))
    finding = only(report(raw), "warning")
    assert "voxel size 1 x 1.5 x 2.01 mm, but its image c1_0000.nii.gz has 1 x 1.5 x 2 mm; no corner" in finding.problem
    assert "0.07 mm off" in finding.problem


def test_second_channel_on_another_grid(raw: Path) -> None:
    write_description(raw, channel_names={"0": "T1", "1": "T2"})
    for i in range(3):
        affine = np.diag([1.0, 1.5, 2.2, 1.0]) if i == 1 else AFFINE
        save(raw / "imagesTr" / f"c{i}_0001.nii.gz", noise(), affine)
    finding = only(report(raw))
    assert finding.file == raw / "imagesTr" / "c1_0001.nii.gz"
    assert "voxel size 1 x 1.5 x 2.2 mm, but its first channel c1_0000.nii.gz has 1 x 1.5 x 2 mm" in finding.problem


def test_copies_are_found_also_between_training_and_test(raw: Path) -> None:
    save(raw / "imagesTs" / "t_0000.nii.gz", noise(), AFFINE)
    finding = only(report(raw))
    assert finding.file == raw / "imagesTs" / "t_0000.nii.gz"
    assert "case 't' has the same voxels as case 'c1' (training and test)" in finding.problem


def test_empty_label_map_and_unused_label_are_warnings(raw: Path) -> None:
    save(label(raw), 0 * mask(), AFFINE)
    finding = only(report(raw), "warning")
    assert (finding.file, finding.problem) == (label(raw), "every voxel is background (0)")
    write_description(raw, labels={"background": 0, "ball": 1, "cube": 2})
    save(label(raw), mask(), AFFINE)
    assert "label 'cube' (2) occurs in no case" in only(report(raw), "warning").problem


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_with_too_small_a_shape_is_stated(raw: Path, ending: str) -> None:
    write_description(raw, file_ending=ending)
    for path in [*(raw / "imagesTr").iterdir(), *(raw / "labelsTr").iterdir()]:
        nibabel.save(nibabel.load(path), path.with_name(path.name.replace(".nii.gz", ending)))
        if ending == ".nii":
            path.unlink()
    path = image(raw).with_name("c1_0000" + ending)
    content = bytearray(gzip.decompress(path.read_bytes()) if ending == ".nii.gz" else path.read_bytes())
    content[42:44] = (9).to_bytes(2, "little")  # dim[1], which was 10
    path.write_bytes(gzip.compress(bytes(content)) if ending == ".nii.gz" else bytes(content))
    warning = next(f for f in report(raw).findings if f.level == "warning")
    assert warning.file == path
    assert warning.problem == "384 bytes follow the voxels of the header's shape, 9 x 12 x 8 of float32"


@pytest.mark.parametrize(
    ("offset", "value", "level", "problem"),
    [
        (123, 7, "error", "the unit of length has the code 7, which means none"),
        (252, 99, "warning", "the header is at fault: qform_code 99 not valid; setting to 0"),
        (70, 99, "error", "not a readable NIfTI file"),
    ],
)
def test_faults_that_readers_would_mend_silently(raw: Path, offset: int, value: int, level: str, problem: str) -> None:
    content = bytearray(gzip.decompress(image(raw).read_bytes()))
    content[offset] = value
    image(raw).write_bytes(gzip.compress(bytes(content)))
    assert any(f.level == level and problem in f.problem for f in report(raw).findings), report(raw).findings


def test_damaged_headers_never_end_the_check(raw: Path) -> None:
    rng = np.random.default_rng(0)
    good = {path: gzip.decompress(path.read_bytes()) for path in (image(raw), label(raw))}
    for turn in range(60):
        for path, content in good.items():
            damaged = bytearray(content)
            for _ in range(1 + turn % 4):
                damaged[rng.integers(348)] = rng.integers(256)
            path.write_bytes(gzip.compress(bytes(damaged), 1))
        assert [case.id for case in report(raw).cases] == ["c0", "c1", "c2"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("shear", "the axes are not at right angles: 84.3, 90.0, 90.0 degrees"),
        ("none", "holds no orientation (qform and sform code 0)"),
        ("forms", "qform and sform place a corner 5 apart"),
        ("units", "lengths are in meter"),
        ("pixdim", "voxel size is 1 x 1.5 x 3 by pixdim, 1 x 1.5 x 2 by the affine"),
    ],
)
def test_ambiguous_headers_are_stated(raw: Path, change: str, problem: str) -> None:
    affine = AFFINE.copy()
    if change == "shear":
        affine[0, 1] = 0.15
    stored = nibabel.Nifti1Image(noise(), affine)
    stored.header.set_xyzt_units("meter" if change == "units" else "mm")
    if change == "units":
        stored = nibabel.Nifti1Image(noise(), affine / 1000, stored.header)
        stored.header.set_sform(np.diag([0.001, 0.0015, 0.002, 1]), code=1)
    elif change == "none":
        stored.header.set_sform(None, code=0)
        stored.header.set_qform(None, code=0)
        stored = nibabel.Nifti1Image(noise(), None, stored.header)
        stored.header["pixdim"][1:4] = 1, 1.5, 2
    elif change == "forms":
        stored.set_qform(shifted(5.0), code=1)
        stored.set_sform(AFFINE, code=1)
    elif change == "pixdim":
        stored.set_sform(AFFINE, code=1)
        stored.header["pixdim"][3] = 3
    nibabel.save(stored, image(raw))
    grid = nibabel.load(image(raw)).affine
    save(label(raw), mask(), np.diag([1000, 1000, 1000, 1]) @ grid if change == "units" else grid)
    problems = [f.problem for f in report(raw).findings if f.file == image(raw)]
    assert any(problem in found for found in problems), problems


def test_command_line_ends_with_2_on_errors_and_writes_the_report(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    words = ["check", str(raw), "--workers", "1", "--json", str(out)]
    assert main(words) == 0
    assert "0 error(s), 0 warning(s), 0 note(s)" in capsys.readouterr().out
    label(raw).unlink()
    assert main([*words, "--overwrite"]) == 2
    shown = capsys.readouterr()
    assert f"{label(raw)}: case 'c1' has no label map; add it, or remove the case" in shown.out
    assert "1 error(s) found" in shown.err
    written = json.loads(out.read_text())
    assert (written["format"], written["layout"], written["errors"]) == ("ssmvision check", "nnU-Net raw", 1)
    assert written["findings"][0]["file"] == str(label(raw))
    assert written["cases"][0]["spacing_mm"] == [1.0, 1.5, 2.0]


def test_a_warning_about_every_file_is_printed_once(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (raw / "labelsTr").iterdir():
        save(path, 0 * mask(), AFFINE)
    assert main(["check", str(raw), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("every voxel is background") == 1
    assert "(and 2 more files alike)" in out
