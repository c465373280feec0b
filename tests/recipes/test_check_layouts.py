from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.checking.command import Report, check
from ssmvision.recipes.checking.config import CheckConfig
from ssmvision.recipes.checking.layouts import find_dataset
from tests.recipes.synthetic import ball, save, write_description

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])


def put(path: Path, seed: int, mask: bool = False) -> Path:
    return save(path, ball((6, 7, 5), seed)[int(mask)], AFFINE)


def problems(report: Report, level: str = "error") -> list[tuple[str, str]]:
    return [(f.file.name, f.problem) for f in report.findings if f.level == level]


def run(root: Path) -> Report:
    return check(CheckConfig(root, workers=1))


def test_every_fault_of_an_nnunet_folder_is_found_at_once(tmp_path: Path) -> None:
    for name in ("a_0000", "a_0001", "b_0000", "c", "d_0000", "d_0001"):
        put(tmp_path / "imagesTr" / f"{name}.nii.gz", len(name) + ord(name[0]) + ord(name[-1]))
    for i, name in enumerate(("a", "d", "e")):
        put(tmp_path / "labelsTr" / f"{name}.nii.gz", i, mask=True)
    put(tmp_path / "labelsTr" / "f.nii", 9, mask=True)
    (tmp_path / "imagesTr" / "notes.txt").write_text("x")
    write_description(tmp_path, channel_names={"0": "T1", "1": "T2"}, numTraining=5)
    report = run(tmp_path)
    assert problems(report) == [
        ("c.nii.gz", "the name has no channel number"),
        ("b_0000.nii.gz", "case 'b' has the channels ['0000'], dataset.json names ['0000', '0001']"),
        ("b.nii.gz", "case 'b' has no label map"),
        ("e.nii.gz", "case 'e' has no image in imagesTr"),
        ("dataset.json", "numTraining is 5, but 3 training cases were found"),
        ("b_0000.nii.gz", "1 channel(s), expected 2"),
    ]
    assert [name for name, _ in problems(report, "warning")] == ["f.nii", "notes.txt"]


def test_a_broken_description_does_not_hide_the_files(tmp_path: Path) -> None:
    put(tmp_path / "imagesTr" / "a_0000.nii.gz", 0)
    put(tmp_path / "labelsTr" / "a.nii.gz", 0, mask=True)
    write_description(tmp_path, labels={"background": 0, "tumour": [1, 2]}, channel_names=None)
    report = run(tmp_path)
    assert [name for name, _ in problems(report)] == ["dataset.json", "dataset.json"]
    assert "channel_names is None" in problems(report)[0][1]
    assert "no region lists" in report.findings[1].fix
    assert report.cases[0].shape == (6, 7, 5)
    (tmp_path / "dataset.json").write_text("{")
    assert "not valid JSON" in problems(run(tmp_path))[0][1]


def test_decathlon_list(tmp_path: Path) -> None:
    for i in range(2):
        put(tmp_path / "imagesTr" / f"x{i}.nii.gz", i)
        put(tmp_path / "labelsTr" / f"x{i}.nii.gz", i, mask=True)
    put(tmp_path / "imagesTr" / "left.nii.gz", 7)
    content = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "ball"},
        "numTraining": 2,
        "training": [
            *({"image": f"./imagesTr/x{i}.nii.gz", "label": f"./labelsTr/x{i}.nii.gz"} for i in range(2)),
            {"image": "./imagesTr/x9.nii.gz", "label": "./labelsTr/x1.nii.gz"},
            {"image": 3},
        ],
        "test": ["./imagesTs/y.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    report = run(tmp_path)
    assert report.dataset.layout == "Decathlon / MONAI datalist"
    assert problems(report) == [
        ("x9.nii.gz", "no such file, but training[2] names it"),
        ("dataset.json", "training[3] has the image 3"),
        ("y.nii.gz", "no such file, but test[0] names it"),
    ]
    assert problems(report, "warning") == [("left.nii.gz", "lies among the dataset's files but is not listed")]
    assert problems(run(tmp_path / "dataset.json")) == problems(report)


def test_cases_of_one_name_are_told_apart_by_folder(tmp_path: Path) -> None:
    entries = []
    for i in range(2):
        put(tmp_path / f"p{i}" / "image.nii.gz", i)
        put(tmp_path / f"p{i}" / "label.nii.gz", i, mask=True)
        entries.append({"image": f"p{i}/image.nii.gz", "label": f"p{i}/label.nii.gz"})
    content = {"channel_names": ["CT"], "labels": {"background": 0, "ball": 1}, "training": entries}
    (tmp_path / "list.json").write_text(json.dumps(content))
    report = run(tmp_path / "list.json")
    assert [case.id for case in report.cases] == ["p0_image", "p1_image"]
    assert report.findings == ()


def test_bids(tmp_path: Path) -> None:
    for i, name in enumerate(("sub-1", "sub-2_ses-1", "sub-2_ses-2", "sub-3")):
        folder = tmp_path.joinpath(*name.split("_"), "anat")
        put(folder / f"{name}_T1w.nii.gz", 2 * i)
        if name != "sub-3":
            put(folder / f"{name}_acq-fast_T2w.nii.gz", 2 * i + 1)
            label = tmp_path.joinpath("derivatives", "manual", *name.split("_"), "anat", f"{name}_dseg.nii.gz")
            put(label, i, mask=True)
    put(tmp_path / "sub-1" / "anat" / "sub-1_FLAIR.nii.gz", 20)
    put(tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii", 30)
    table = tmp_path / "derivatives" / "manual" / "dseg.tsv"
    table.write_text("index\tname\n1\tball\n2\tcube\n")
    report = run(tmp_path)
    assert report.dataset.layout == "BIDS-like"
    assert report.dataset.channels == ("T1w", "acq-fast_T2w")
    assert report.dataset.labels == {"background": 0, "ball": 1, "cube": 2}
    assert [case.id for case in report.cases] == ["sub-1", "sub-2_ses-1", "sub-2_ses-2", "sub-3"]
    twice = tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii"
    assert problems(report) == [
        ("sub-1_T1w.nii.gz", f"case 'sub-1' has this image twice, also as {twice}"),
        ("anat", "case 'sub-3' has no acq-fast_T2w image, unlike most"),
        ("sub-3_T1w.nii.gz", "case 'sub-3' has 0 label maps"),
        ("sub-3_T1w.nii.gz", "1 channel(s), expected 2"),
    ]
    assert [name for name, _ in problems(report, "warning")] == ["sub-1_FLAIR.nii.gz", table.name]


@pytest.mark.parametrize("form", ["folders", "suffix", "cases"])
def test_plain_pairs(tmp_path: Path, form: str) -> None:
    names = {
        "folders": ("images/{0}.nii.gz", "masks/{0}.nii.gz"),
        "suffix": ("{0}.nii.gz", "{0}_seg.nii.gz"),
        "cases": ("{0}/t1.nii.gz", "{0}/mask.nii.gz"),
    }[form]
    for i, case in enumerate("abc"):
        put(tmp_path / names[0].format(case), i)
        if case != "c":
            put(tmp_path / names[1].format(case), i, mask=True)
    report = run(tmp_path)
    assert report.dataset.layout == "pairs of NIfTI files"
    assert [case.id for case in report.cases] == ["a", "b", "c"]
    assert [problem for _, problem in problems(report)] == ["case 'c' has no label map"]
    notes = [problem for _, problem in problems(report, "note")]
    assert "label ids found: [0, 1]; nothing says what they are" in notes
    assert "every case has 1 channel(s)" in notes


def test_a_second_label_map_of_a_case_is_not_just_left_out(tmp_path: Path) -> None:
    beside, apart = tmp_path / "beside", tmp_path / "apart"
    put(beside / "a.nii.gz", 0)
    put(apart / "images" / "a.nii.gz", 0)
    for path in (
        beside / "a_mask.nii.gz",
        beside / "a_seg.nii.gz",
        apart / "masks/a.nii",
        apart / "masks/a_seg.nii.gz",
    ):
        put(path, 0, mask=True)
    assert problems(run(beside)) == [("a_seg.nii.gz", "case 'a' has another label map, a_mask.nii.gz")]
    assert problems(run(apart)) == [("a_seg.nii.gz", "case 'a' has another label map, a.nii")]


def test_cases_with_other_numbers_of_channels_stand_out(tmp_path: Path) -> None:
    for i, case in enumerate("abc"):
        for channel in ("t1", "t2")[: 1 if case == "c" else 2]:
            put(tmp_path / case / f"{channel}.nii.gz", 3 * i + len(channel) + ord(channel[1]))
        put(tmp_path / case / "seg.nii.gz", i, mask=True)
    assert [p for _, p in problems(run(tmp_path))] == ["case 'c' has 1 channel(s), 2 of 3 cases have 2"]


def test_gaps_in_unnamed_ids_get_a_mapping(tmp_path: Path) -> None:
    put(tmp_path / "a.nii.gz", 0)
    save(tmp_path / "a_seg.nii.gz", 5 * ball((6, 7, 5), 0)[1], AFFINE)
    warning = next(f for f in run(tmp_path).findings if f.level == "warning")
    assert (warning.problem, warning.fix) == ("label ids have gaps: [0, 5]", "renumber them for training: {0: 0, 5: 1}")


def test_ids_that_differ_only_in_capitals_clash(tmp_path: Path) -> None:
    for i, case in enumerate(("Case", "case")):
        put(tmp_path / f"{case}.nii.gz", i)
        put(tmp_path / f"{case}_seg.nii.gz", i, mask=True)
    assert {p for _, p in problems(run(tmp_path))} == {
        "case id 'Case' occurs 2 times",
        "case id 'case' occurs 2 times",
    }


def test_what_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file or folder; check the path"):
        find_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no dataset\.json, no sub-\* folders, no NIfTI files and no DICOM"):
        find_dataset(tmp_path)
    file = put(tmp_path / "a.nii.gz", 0)
    with pytest.raises(UserError, match=r"is a file; give a dataset folder"):
        find_dataset(file)
