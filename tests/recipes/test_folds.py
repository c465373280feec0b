from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import Case, Dataset
from ssmvision.recipes.segmentation.folds import split

CASES = tuple(Case(f"case_{i:02d}", ()) for i in range(12))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path / "dataset.json", ("MRI",), {"background": 0, "ball": 1}, CASES[::-1])


def ids(cases: tuple[Case, ...]) -> list[str]:
    return [case.id for case in cases]


def test_folds_are_nnunets_whatever_the_order_of_the_files(dataset: Dataset) -> None:
    # KFold's own rule: the shuffled places 0 ... 11, cut into parts of 3, 3, 2, 2 and 2.
    order = np.arange(12)
    np.random.RandomState(12345).shuffle(order)
    held_out = []
    for fold, part in enumerate(np.split(order, [3, 6, 8, 10])):
        found = split(dataset, fold)
        assert sorted(ids(found.validation)) == [CASES[i].id for i in sorted(part)]
        assert sorted(ids(found.training + found.validation)) == ids(CASES)
        held_out += ids(found.validation)
    assert sorted(held_out) == ids(CASES)
    everything = split(dataset, "all")
    assert everything.training == everything.validation == dataset.training


def test_nnunets_own_list_of_folds_counts(dataset: Dataset) -> None:
    path = dataset.path.with_name("splits_final.json")
    path.write_text(json.dumps([{"train": ["case_01", "case_05"], "val": ["case_03"]}]))
    found = split(dataset, 0)
    assert (ids(found.training), ids(found.validation)) == (["case_05", "case_01"], ["case_03"])
    with pytest.raises(UserError, match=r"data\.fold: 1 is not among the 1 folds"):
        split(dataset, 1)
    for content, message in (
        ([{"train": ["case_01"], "val": ["x"]}], r"\[0\]\.val names \['x'\], which are no training cases"),
        ([{"train": [], "val": ["case_01"]}], r"\[0\]\.train is empty"),
        ([{"train": ["case_01"], "val": ["case_01"]}], r"\['case_01'\] both in train and in val"),
        ({"train": []}, "holds no folds"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            split(dataset, 0)
    path.write_text("[{")
    with pytest.raises(UserError, match="could not be read as JSON"):
        split(dataset, 0)


def test_folds_that_cannot_be(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="5 is not among the 5 folds; give 0 to 4, or all"):
        split(dataset, 5)
    with pytest.raises(UserError, match=r"12 training case\(s\) make no 13 folds"):
        split(dataset, 0, 13)
    with pytest.raises(UserError, match=r"data\.folds: 1 is not possible"):
        split(dataset, 0, 1)
    with pytest.raises(UserError, match=r"lists 1 validation case\(s\) itself"):
        split(replace(dataset, validation=CASES[:1]), 0)
