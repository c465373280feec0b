from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import hold_out, read_dataset
from tests.recipes.synthetic import write_description


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    touch(tmp_path, *(f"imagesTr/c{i}_000{c}.nii.gz" for i in range(3) for c in range(2)))
    touch(tmp_path, *(f"labelsTr/c{i}.nii.gz" for i in range(3)), "imagesTs/t_0000.nii.gz", "imagesTs/t_0001.nii.gz")
    write_description(tmp_path, channel_names={"0": "T1", "1": "T2"}, numTraining=3)
    return tmp_path


def test_nnunet_folder(raw: Path) -> None:
    dataset = read_dataset(raw)
    assert [c.id for c in dataset.training] == ["c0", "c1", "c2"]
    assert [f.name for f in dataset.training[1].images] == ["c1_0000.nii.gz", "c1_0001.nii.gz"]
    assert dataset.training[1].label == raw / "labelsTr" / "c1.nii.gz"
    assert (dataset.channels, dataset.labels) == (("T1", "T2"), {"background": 0, "ball": 1})
    assert [c.id for c in dataset.test] == ["t"]


def test_decathlon_folder_and_monai_datalist(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "x/v.nii.gz", "x/v_label.nii.gz", "x/t.nii.gz")
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "validation": [{"image": ["x/v.nii.gz"], "label": "x/v_label.nii.gz"}],
        "test": ["x/t.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "list.json").write_text(json.dumps(content))
    for root in (tmp_path, tmp_path / "list.json"):
        dataset = read_dataset(root)
        assert ([c.id for c in dataset.training], [c.id for c in dataset.validation]) == (["a"], ["v"])
        assert dataset.labels == {"background": 0, "liver": 1}
        assert dataset.test[0].label is None


@pytest.mark.parametrize(
    ("changes", "value", "fix"),
    [
        ({"numTraining": 7}, "numTraining is 7", "correct numTraining"),
        ({"channel_names": {"0": "T1"}}, "['0000', '0001']", "channel_names"),
        ({"channel_names": {"1": "T1", "2": "T2"}}, "['1', '2']", "['0', '1']"),
        ({"labels": {"background": 0, "liver": 2}}, "[0, 2]", "number them 0"),
        ({"labels": {"background": 0, "tumour": [1, 2]}}, "[1, 2]", "one integer id"),
        ({"labels": {"background": 0, "liver": 1, "ignore": 2}}, "'ignore' (2)", "give those voxels"),
        ({"labels": {"background": 0, "liver": 1, "spleen": 1}}, "[0, 1, 1]", "number them"),
        ({"file_ending": ".nrrd"}, "'.nrrd'", "convert"),
    ],
)
def test_contradictions_name_file_value_and_fix(raw: Path, changes: dict, value: str, fix: str) -> None:
    path = write_description(raw, **({"channel_names": {"0": "T1", "1": "T2"}} | changes))
    with pytest.raises(UserError) as error:
        read_dataset(raw)
    assert str(path) in str(error.value) or str(path.parent) in str(error.value)
    assert value in str(error.value)
    assert fix in str(error.value)


def test_missing_files_are_named(raw: Path) -> None:
    (raw / "labelsTr" / "c1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"labelsTr/c1\.nii\.gz: no such file \(case 'c1'.*restore it"):
        read_dataset(raw)
    (raw / "imagesTr" / "c1_0001.nii.gz").unlink()
    with pytest.raises(UserError, match=r"case 'c1' has the channels \['0000'\].*add or remove"):
        read_dataset(raw)
    with pytest.raises(UserError, match=r"nowhere: no such file; give an nnU-Net"):
        read_dataset(raw / "nowhere")


def test_repeated_case_and_broken_json(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz", "l.nii.gz")
    entry = {"image": "a.nii.gz", "label": "l.nii.gz"}
    path = write_description(tmp_path, training=[entry, entry])
    content = json.loads(path.read_text())
    del content["file_ending"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"dataset\.json: case id\(s\) \['.*_a'\] occur more than once; give"):
        read_dataset(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json: not valid JSON .*correct the file"):
        read_dataset(path)


def test_equal_file_names_are_told_apart_by_folder(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{case}/{name}.nii.gz" for case in "ab" for name in ("image", "label")))
    entries = [{"image": f"{case}/image.nii.gz", "label": f"{case}/label.nii.gz"} for case in "ab"]
    content = {"modality": ["MRI"], "labels": {"0": "background", "1": "x"}, "training": entries}
    (tmp_path / "list.json").write_text(json.dumps(content))
    assert [c.id for c in read_dataset(tmp_path / "list.json").training] == ["a_image", "b_image"]


def test_hold_out_is_disjoint_and_seeded(raw: Path) -> None:
    dataset = read_dataset(raw)
    split = hold_out(dataset, (), 0.34, seed=3)
    assert {c.id for c in split.training}.isdisjoint(c.id for c in split.validation)
    assert (len(split.training), len(split.validation)) == (2, 1)
    assert hold_out(dataset, (), 0.34, seed=3) == split
    assert [c.id for c in hold_out(dataset, ("c2",), 0.9, 0).validation] == ["c2"]
    with pytest.raises(UserError, match=r"\['z'\] not among .*'c0'"):
        hold_out(dataset, ("z",), 0, 0)
    with pytest.raises(UserError, match="all held out"):
        hold_out(dataset, ("c0", "c1", "c2"), 0, 0)
