"""Fault 17: wrong number, order or names of channels are refused with the list that is expected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.faults.common import cli, labels_of, never_wrong, run_folder
from tests.recipes.synthetic import ball, nnunet_folder, save, write_description

SHAPE = (10, 12, 8)
CHANNELS = ("T1", "FLAIR")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two channels."""
    return run_folder(tmp_path_factory.mktemp("two") / "run", CHANNELS)


def case(folder: Path, names: tuple[str, ...]) -> Path:
    for i, name in enumerate(names):
        save(folder / f"{name}.nii.gz", ball(SHAPE, seed=i)[0])
    return folder


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("c_0000",), "1 channel(s) found, 2 expected ['T1', 'FLAIR']"),
        (("c_0001",), "1 channel(s) found, 2 expected ['T1', 'FLAIR']"),
        (("c_0000", "c_0001", "c_0002"), "expects 2; name them c_0000.nii.gz (T1), c_0001.nii.gz (FLAIR)"),
        (("c_0001", "c_0002"), "expects 2; name them c_0000.nii.gz (T1), c_0001.nii.gz (FLAIR)"),
        (("c_0000", "c_0002"), "expects 2; name them c_0000.nii.gz (T1), c_0001.nii.gz (FLAIR)"),
    ],
)
@pytest.mark.fault(17, part="missing, surplus or misnumbered files: refused with the expected names, never broadcast")
def test_wrong_files(two: Path, tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    done = cli("predict", two, case(tmp_path / "in", names), tmp_path / "out", "--device", "cpu")
    never_wrong(not list(tmp_path.glob("out/*")), "labels from wrong channels")
    assert done.status == 2
    assert told in done.said


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.fault(17, part="a fourth axis of another length: refused with the expected list")
def test_wrong_fourth_axis(two: Path, tmp_path: Path, count: int) -> None:
    path = save(tmp_path / "a.nii.gz", np.stack([ball(SHAPE)[0]] * count, -1))
    done = cli("predict", two, path, tmp_path / "out.nii.gz", "--device", "cpu")
    never_wrong(not (tmp_path / "out.nii.gz").exists(), "labels from wrong channels")
    assert done.status == 2
    assert f"{count} channel(s) found, 2 expected ['T1', 'FLAIR']" in done.said


@pytest.mark.fault(17, part="another order of channels in the images' dataset.json is refused, the right one accepted")
def test_order(two: Path, tmp_path: Path) -> None:
    source = case(tmp_path / "imagesTs", ("c_0000", "c_0001"))
    write_description(tmp_path, channel_names={"0": "FLAIR", "1": "T1"})
    done = cli("predict", two, source, tmp_path / "out", "--device", "cpu")
    never_wrong(not (tmp_path / "out").exists(), "labels from exchanged channels")
    assert done.status == 2
    assert "the images have the channels ['FLAIR', 'T1'], the model expects ['T1', 'FLAIR'] in this order" in done.said
    write_description(tmp_path, channel_names={"0": "T1", "1": "flair"})
    assert cli("predict", two, source, tmp_path / "out", "--device", "cpu").status == 0
    exchanged = case(tmp_path / "exchanged", ("c_0001", "c_0000"))
    assert cli("predict", two, exchanged, tmp_path / "other", "--device", "cpu").status == 0
    never_wrong(
        not np.array_equal(labels_of(tmp_path / "out" / "c.nii.gz"), labels_of(tmp_path / "other" / "c.nii.gz")),
        "the order of channels does not count",
    )


@pytest.mark.fault(17, part="training and check refuse a case without one of the modalities")
def test_missing_modality_in_training(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path / "raw", [SHAPE, SHAPE], channels=2)
    (root / "imagesTr" / "case_1_0001.nii.gz").unlink()
    told = f"{root / 'imagesTr'}: case 'case_1' has the channels ['0000'], but dataset.json names 2 channel(s)"
    done = cli("train", "--data.root", root, "--out", tmp_path / "run")
    assert done.status == 2
    assert told in done.said
    done = cli("check", root, "--workers", 1)
    assert done.status == 2
    assert "case 'case_1' has the channels ['0000'], dataset.json names ['0000', '0001']" in done.said
    assert json.loads((root / "dataset.json").read_text())["channel_names"] == {"0": "MRI", "1": "MRI"}
