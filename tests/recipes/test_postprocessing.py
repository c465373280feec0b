"""The largest-component rule: components by slabs, the decision, and its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.components import keep_largest
from ssmvision.recipes.evaluation.postprocessing import Postprocessing, decide, find_rule, read_rule, write_rule

LABELS = {"background": 0, "liver": 1, "tumour": 2}


@pytest.mark.parametrize("planes", [1, 2, 5, 100])
def test_slabs_find_the_components_of_the_whole(planes: int) -> None:
    rng = np.random.default_rng(0)
    for density in (0.03, 0.08, 0.3):
        labels = (rng.random((11, 9, 8)) < density).astype(np.uint8) * rng.integers(1, 4, (11, 9, 8)).astype(np.uint8)
        parts, count = ndimage.label(np.isin(labels, [1, 3]), np.ones((3, 3, 3)))
        sizes = np.bincount(parts.ravel())[1:]
        kept = np.isin(parts, 1 + np.flatnonzero(sizes == sizes.max()))
        expected = np.where((labels == 2) | kept, labels, 0)
        found = labels.copy()
        assert keep_largest(found, [1, 3], planes * 72) == int(((labels > 0) & (expected == 0)).sum())
        np.testing.assert_array_equal(found, expected)
        assert count > 1


def test_nothing_to_keep_or_to_remove(tmp_path: Path) -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    assert keep_largest(empty, [1]) == 0
    file = np.memmap(tmp_path / "labels", np.uint8, "w+", shape=(4, 4, 4))
    file[1:3, 1:3, 0:2] = 1
    file[0, 0, 3] = 1
    assert keep_largest(file, [1]) == 1
    assert int(file.sum()) == 8
    with pytest.raises(ValueError, match=r"ids \[0\]"):
        keep_largest(empty, [0])


def organ(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    """Label map of boxes (label, start, stop, width) along the first axis."""
    labels = np.zeros((20, 6, 6), np.uint8)
    for label, start, stop, width in boxes:
        labels[start:stop, :width, :width] = label
    return labels


def test_a_rule_that_helps_is_chosen_and_reproduces_its_dice() -> None:
    reference = organ((1, 0, 8, 5), (2, 8, 10, 5))
    prediction = organ((1, 0, 8, 5), (2, 8, 10, 5), (1, 15, 18, 3))
    rule = decide([(prediction, reference)] * 2, LABELS)
    assert (rule.foreground, rule.classes, rule.cases) == (True, (), 2)
    assert rule.dice["liver"]["after"] == 1 > rule.dice["liver"]["before"]
    assert rule.apply(prediction) == 27
    np.testing.assert_array_equal(prediction, reference)


def test_a_class_with_true_parts_apart_is_left_alone() -> None:
    """Two true tumours and a stray piece of liver that touches nothing: only the liver's rule helps."""
    reference = organ((1, 0, 8, 5), (2, 10, 12, 4), (2, 15, 17, 4))
    prediction = organ((1, 0, 8, 5), (2, 10, 12, 4), (2, 15, 17, 4), (1, 18, 20, 2))
    rule = decide([(prediction, reference)], LABELS)
    assert (rule.foreground, rule.classes) == (False, ("liver",))
    assert rule.dice["tumour"] == {"before": 1, "after": 1}
    assert str(rule) == "keeps only the largest component of liver"


def test_false_positives_that_vanish_count_for_the_rule() -> None:
    reference = organ((1, 0, 8, 5))
    stray = organ((1, 0, 8, 5), (2, 15, 17, 2))
    rule = decide([(stray, reference)], LABELS)
    assert (rule.foreground, rule.classes) == (True, ())
    assert rule.dice["tumour"]["before"] == 0
    missed = decide([(reference * 0, reference)], LABELS)
    assert (missed.foreground, missed.classes) == (False, ())
    with pytest.raises(ValueError, match="no case to decide on"):
        decide([], LABELS)


def test_one_class_has_one_rule() -> None:
    reference = organ((1, 0, 8, 5))
    rule = decide([(organ((1, 0, 8, 5), (1, 15, 17, 2)), reference)], {"background": 0, "liver": 1})
    assert (rule.foreground, rule.classes) == (True, ())


def test_file_round_trip_and_refusals(tmp_path: Path) -> None:
    rule = Postprocessing(LABELS, True, ("liver",), ("ab",), 3, {"liver": {"before": 0.5, "after": float("nan")}})
    path = write_rule(tmp_path / "postprocessing.json", rule)
    read = read_rule(path, LABELS)
    assert (read.foreground, read.classes, read.models, read.cases) == (True, ("liver",), ("ab",), 3)
    with pytest.raises(UserError, match=r"postprocessing\.json: made for the labels .*the model has"):
        read_rule(path, {"background": 0, "liver": 1})
    content = json.loads(path.read_text())
    content["keep_largest_component"]["classes"] = ["spleen"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"classes among \['liver', 'tumour'\]"):
        read_rule(path, LABELS)
    del content["decided_on"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="KeyError: 'decided_on'"):
        read_rule(path, LABELS)
    with pytest.raises(UserError, match="ssmvision postprocess"):
        read_rule(tmp_path / "none.json", LABELS)


def run_folder(path: Path, rule: Postprocessing | None, digest: str = "ab") -> Path:
    path.mkdir()
    (path / "model.json").write_text(json.dumps({"sha256": digest}))
    if rule is not None:
        write_rule(path / "postprocessing.json", rule)
    return path


def test_predict_finds_the_rule_of_its_folders(tmp_path: Path) -> None:
    rule = Postprocessing(LABELS, True, (), ("ab", "cd"), 3)
    folders = [run_folder(tmp_path / "0", rule), run_folder(tmp_path / "1", rule, "cd")]
    bare = run_folder(tmp_path / "bare", None)
    assert find_rule("none", folders, LABELS) is None
    assert find_rule("auto", [bare], LABELS) is None
    found = find_rule("auto", [folders[0], folders[1] / "model.safetensors"], LABELS)
    assert found is not None
    assert found.foreground
    with pytest.raises(UserError, match="only 1 of 2 models have such a file; run `ssmvision postprocess`"):
        find_rule("auto", [folders[0], bare], LABELS)
    assert find_rule(folders[0] / "postprocessing.json", [bare], LABELS) is not None
    shutil.copy(folders[0] / "postprocessing.json", bare)
    (bare / "model.json").write_text(json.dumps({"sha256": "ef"}))
    with pytest.raises(UserError, match=r"bare/postprocessing\.json: was decided on other weights than ef"):
        find_rule("auto", [bare], LABELS)
    write_rule(folders[1] / "postprocessing.json", Postprocessing(LABELS, False, ("liver",), ("cd",), 3))
    with pytest.raises(UserError, match=r"keeps only the largest component of liver, but .* all classes together"):
        find_rule("auto", folders, LABELS)
