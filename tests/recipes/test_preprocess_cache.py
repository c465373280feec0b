"""Prepared cases on disk: what names an entry, what is kept, what goes wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.planning import measure
from ssmvision.recipes.preprocessing import cache
from ssmvision.recipes.preprocessing.cache import fill_cache
from ssmvision.recipes.preprocessing.case import read_case
from ssmvision.recipes.preprocessing.store import CaseStore, entry_key, is_complete
from ssmvision.recipes.segmentation import writing
from ssmvision.recipes.segmentation.datalist import Dataset, read_dataset
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.workers import Outcome, map_cases
from tests.recipes.synthetic import ball, nnunet_folder, save

HOW = Preprocessing("RAS", (1.2, 1.2, 2.0), (ChannelScale("zscore"),), "nnunet")
WHOLE = (slice(None),) * 3


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(20, 18, 12), (18, 20, 14), (16, 16, 10)])


@pytest.fixture
def dataset(raw: Path) -> Dataset:
    return read_dataset(raw)


def test_entries_hold_the_prepared_case_and_parts_of_it(dataset: Dataset, tmp_path: Path) -> None:
    found = fill_cache(tmp_path, HOW, dataset, workers=1)
    assert list(found) == ["case_0", "case_1", "case_2"]
    for case in dataset.training:
        stored, expected = CaseStore(found[case.id].entry), read_case(HOW, case, ("MRI",), (0, 1))
        assert stored.shape == expected.image.shape == found[case.id].shape
        assert stored.spacing_mm == expected.spacing_mm
        np.testing.assert_array_equal(stored.image(WHOLE), expected.image)
        np.testing.assert_array_equal(stored.label(WHOLE), expected.label)
        box = (slice(3, 9), slice(0, 7), slice(2, 5))
        np.testing.assert_array_equal(stored.image(box), expected.image[(slice(None), *box)])
        np.testing.assert_array_equal(stored.locations.voxels, expected.locations.voxels)
        assert stored.locations.present == [1]
    # Nothing that names a case or a place.
    written = "".join(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    texts = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "case_0" not in written + texts
    assert str(dataset.path.parent) not in texts


def test_what_changes_gets_another_entry_and_what_is_there_is_kept(raw: Path, tmp_path: Path) -> None:
    data = tmp_path / "raw"
    for path in raw.rglob("*"):
        if path.is_file():
            (data / path.relative_to(raw)).parent.mkdir(parents=True, exist_ok=True)
            (data / path.relative_to(raw)).write_bytes(path.read_bytes())
    dataset, folder = read_dataset(data), tmp_path / "cache"
    first = fill_cache(folder, HOW, dataset, workers=1)
    done: list[str] = []
    again = fill_cache(folder, HOW, dataset, 1, done.append)
    assert ([c.made for c in first.values()], [c.made for c in again.values()]) == ([True] * 3, [False] * 3)
    assert done == ["case_0", "case_1", "case_2"]
    assert {c.entry for c in first.values()} == {c.entry for c in again.values()}

    # Another label in one file; the same size and time of change must not hide it.
    path = data / "labelsTr" / "case_1.nii.gz"
    times = path.stat()
    save(path, 1 - ball((18, 20, 14), seed=1)[1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = fill_cache(folder, HOW, dataset, workers=1)
    assert [c.made for c in changed.values()] == [False, True, False]
    assert changed["case_1"].entry != first["case_1"].entry
    other = replace(HOW, spacing_mm=(1.2, 1.2, 2.1))
    assert all(c.made for c in fill_cache(folder, other, dataset, workers=1).values())
    keys = {entry_key(how, dataset.training[0], ("MRI",), ids) for how in (HOW, other) for ids in ((0, 1), (0, 1, 2))}
    assert len(keys) == 4

    # A case that was not written to the end is prepared again.
    (first["case_0"].entry / "case.json").unlink()
    (first["case_0"].entry / "image.b2nd").write_bytes(b"half a file")
    assert [c.made for c in fill_cache(folder, HOW, dataset, workers=1).values()] == [True, False, False]
    assert CaseStore(first["case_0"].entry).image(WHOLE).any()


def test_bad_cases_are_named_and_the_others_kept(raw: Path, dataset: Dataset, tmp_path: Path) -> None:
    one, two, three = dataset.training
    torn = save(tmp_path / "torn.nii.gz", ball((18, 20, 14))[0])
    torn.write_bytes(torn.read_bytes()[:500])
    broken = replace(
        dataset, training=(replace(one, images=(tmp_path / "gone.nii.gz",)), replace(two, images=(torn,)), three)
    )
    with pytest.raises(UserError, match=r"2 of 3 case\(s\) failed, the others are kept") as caught:
        fill_cache(tmp_path / "cache", HOW, broken, workers=1)
    assert "gone.nii.gz" in str(caught.value)
    assert "torn.nii.gz" in str(caught.value)
    assert [is_complete(entry) for entry in (tmp_path / "cache").iterdir()] == [True]


def test_a_killed_worker_is_named_with_its_case_and_the_others_are_kept(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What workers.map_cases makes of a worker that dies; its own tests kill real ones, which take long to start.
    def killed(function: Any, tasks: list[Any], workers: int, done: Any) -> list[Outcome[Any]]:
        name = tasks[0][0]
        return [Outcome(name, problem=f"case {name!r}: killed by signal 9"), *map_cases(function, tasks[1:], 1, done)]

    monkeypatch.setattr(cache, "map_cases", killed)
    with pytest.raises(UserError, match=r"1 of 3 case\(s\) failed, the others are kept.*'case_0': killed by signal 9"):
        fill_cache(tmp_path, HOW, dataset, workers=1)
    monkeypatch.undo()
    assert [c.made for c in fill_cache(tmp_path, HOW, dataset, workers=1).values()] == [True, False, False]


def test_a_full_disk_leaves_no_part_of_a_file(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(UserError, match=r"image\.b2nd: could not be written .*No space left.*takes up to \d+ bytes"):
        fill_cache(tmp_path, HOW, dataset, workers=1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_file_is_named(dataset: Dataset, tmp_path: Path) -> None:
    entry = fill_cache(tmp_path, HOW, replace(dataset, training=dataset.training[:1]), workers=1)["case_0"].entry
    (entry / "label.b2nd").write_bytes((entry / "label.b2nd").read_bytes()[:200])
    with pytest.raises(UserError, match=r"label\.b2nd: could not be read .*remove its folder"):
        CaseStore(entry).label(WHOLE)
    (entry / "case.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(UserError, match=r"case\.json: format is 0, not 1"):
        _ = CaseStore(entry).shape


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_plan_preprocess_train_and_predict_on_the_command_line(
    raw: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    configuration: str,
) -> None:
    monkeypatch.setattr(measure, "DRAWS", 1000)
    plan, out, run = (str(tmp_path / name) for name in ("plan.json", "cache", "run"))
    assert main(["plan", str(raw), "--workers", "1", "--out", plan, "--mixer", "none"]) == 0
    values = json.loads(Path(plan).read_text())
    for small in values["configurations"].values():
        small.update(features_per_stage=[4] * len(small["strides"]), batch_size=2)
    Path(plan).write_text(json.dumps(values))
    words = ["--plan", plan, "--configuration", configuration]
    assert main(["preprocess", str(raw), "--out", out, *words]) == 0
    assert "3 case(s), 3 prepared now" in " ".join(capsys.readouterr().err.split())
    train = ["train", "--data.root", str(raw), "--data.cache_dir", out, "--data.num_workers", "0", "--out", run, *words]
    train += ["--trainer.max_epochs", "1", "--trainer.steps_per_epoch", "1", "--trainer.accelerator", "cpu"]
    assert main([*train, "--trainer.threads", "1"]) == 0
    assert "3 case(s), 0 prepared now" in " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "run" / "model.json").read_text())["preprocessing"]["rules"] == "nnunet"
    assert main(["predict", run, str(raw / "imagesTr"), str(tmp_path / "labels"), "--device", "cpu"]) == 0
    assert len(list((tmp_path / "labels").iterdir())) == 3
