"""Fault 19: a loss or gradient that is not finite: the module is named, the step skipped, the run bounded."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation import train
from ssmvision.recipes.segmentation.module import SegmentationModule
from tests.faults.common import never_wrong
from tests.recipes.killing import tiny_config
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(10, 12, 9), (12, 10, 8), (9, 9, 9)])


def poisoned(monkeypatch: pytest.MonkeyPatch, first: int, last: int, module: str) -> None:
    """Makes the output of a module overflow in some steps, as a weight that grew too large in float16 does."""
    real = SegmentationModule.training_step
    spoilt: list[SegmentationModule] = []

    def step(self: SegmentationModule, batch: dict[str, torch.Tensor], index: int) -> Any:
        if self not in spoilt:
            spoilt.append(self)
            self.network.get_submodule(module).register_forward_hook(
                lambda m, args, y: y * torch.inf if m.training and first <= self.global_step < last else y
            )
        return real(self, batch, index)

    monkeypatch.setattr(SegmentationModule, "training_step", step)


@pytest.mark.fault(19, part="a run of bad steps: stopped after the stated number, the last good checkpoint resumes")
def test_bounded(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(root, tmp_path / "run", max_nonfinite_steps=3)
    with monkeypatch.context() as patch:
        poisoned(patch, 5, 99, "encoder.stages.1")
        with pytest.raises(UserError, match=r"training stopped at epoch 2, step \d+: .*, step 3 of that kind in a row"):
            train.run(config)
    assert not (config.out / "model.safetensors").exists()
    kept = torch.load(config.out / "last.ckpt", weights_only=True)
    finite = all(bool(torch.isfinite(v).all()) for v in kept["state_dict"].values() if v.is_floating_point())
    never_wrong(finite, "the last checkpoint holds weights that are not finite")
    assert train.run(dataclasses.replace(config, resume=True)).steps == 12


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.fault(19, part="GPU: float16 that overflows under a loss scale is no fault, one that stays is bounded")
def test_float16(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(root, tmp_path / "run", accelerator="gpu", precision="16-mixed", max_nonfinite_steps=3)
    result = train.run(config)
    assert result.steps == 12
    assert all(bool(torch.isfinite(value).all()) for value in load_file(result.weights).values())
    with (config.out / "metrics.csv").open() as stream:
        assert [row["skipped"] for row in csv.DictReader(stream)] == ["0", "0", "0"]
    poisoned(monkeypatch, 0, 99, "encoder.stages.1")
    with pytest.raises(UserError, match=r"first non-finite: output of module encoder\.stages\.1"):
        train.run(dataclasses.replace(config, out=tmp_path / "bad"))


@pytest.mark.fault(19, part="one bad step: the first bad module named, the step skipped and counted")
def test_named_and_skipped(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poisoned(monkeypatch, 5, 6, "encoder.stages.1")
    config = tiny_config(root, tmp_path / "run", max_epochs=2)
    with pytest.warns(UserWarning, match=r"step skipped at epoch 2, step 6: .*output of module encoder\.stages\.1"):
        result = train.run(config)
    assert result.steps == 8
    with (config.out / "metrics.csv").open() as stream:
        assert [row["skipped"] for row in csv.DictReader(stream)] == ["0", "1"]
    finite = all(bool(torch.isfinite(value).all()) for value in load_file(result.weights).values())
    never_wrong(finite, "the model holds weights that are not finite")
