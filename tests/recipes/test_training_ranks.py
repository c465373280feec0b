"""One training shared by two processes is the training of one."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation import train
from ssmvision.recipes.segmentation.batches import SharedCases, StepBatches
from tests.recipes.killing import tiny_config
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path / "raw", [(10, 12, 9), (12, 10, 8), (9, 9, 9), (9, 10, 11)])
    runs = {}
    for devices in (1, 2):
        config = tiny_config(root, tmp_path / f"run_{devices}", devices=devices, max_epochs=2)
        data = dataclasses.replace(config.data, validation_cases=("case_1", "case_2", "case_3"))
        runs[devices] = train.run(dataclasses.replace(config, data=data))
    assert (runs[2].epochs, runs[2].steps) == (2, 8)
    rows = {n: list(csv.DictReader(run.history.open())) for n, run in runs.items()}
    for one, two in zip(rows[1], rows[2], strict=True):
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in two.items()}, rel=1e-5)
    one, two = (load_file(run.weights) for run in runs.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_a_bad_rank_ends_the_others_with_its_message(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path / "raw", [(10, 12, 9), (12, 10, 8)])
    config = tiny_config(root, tmp_path / "run", devices=2, lr=1e30, gradient_clip=0.0, max_nonfinite_steps=1)
    with pytest.raises(UserError, match=r"training stopped at epoch 1, step \d+: .*first non-finite: "):
        train.run(config)
    with pytest.raises(UserError, match=r"trainer\.devices: 3 is not possible; give a number that divides .* 2"):
        train.run(tiny_config(root, tmp_path / "other", devices=3))


def test_batches_are_those_of_one_process_shared_out() -> None:
    whole = list(StepBatches(3, 4, lambda: 0))
    assert whole == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    parts = [list(StepBatches(3, 4, lambda: 0, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole
    assert list(StepBatches(3, 4, lambda: 2)) == whole[2:]
    assert next(iter(StepBatches(3, 4, lambda: 3))) == [12, 13, 14, 15]
    assert sorted([*SharedCases(5, 0, 2), *SharedCases(5, 1, 2)]) == list(range(5))
    assert list(SharedCases(1, 1, 2)) == [0]  # and gather_cases leaves it out
    with pytest.raises(ValueError, match="a batch of 3 cannot be shared equally by 2 processes"):
        StepBatches(1, 3, lambda: 0, 0, 2)
