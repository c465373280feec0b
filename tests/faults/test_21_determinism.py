"""Fault 21: one seed gives one result, bit for bit on one device, within a stated bound on two."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssmvision.recipes.segmentation import train
from ssmvision.recipes.segmentation.config import TrainConfig
from tests.faults.common import never_wrong
from tests.recipes.killing import digests, tiny_config
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")

# Two devices add up their gradients in another order; relative to the loss of every epoch, and to the largest weight.
LOSS_BOUND, WEIGHT_BOUND = 1e-5, 1e-4
GPU_LOSS_BOUND = 1e-3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(10, 12, 9), (12, 10, 8), (9, 9, 9)])


def losses(out: Path) -> list[float]:
    with (out / "metrics.csv").open() as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream)]


def twice(config: TrainConfig) -> None:
    for name in ("one", "two"):
        train.run(dataclasses.replace(config, out=config.out / name))
    same = digests(config.out / "one") == digests(config.out / "two")
    never_wrong(same, "the same seed gave other weights or scores")


@pytest.mark.fault(21, part="the same seed twice on the CPU, and a run that ended early and was resumed: same hashes")
def test_twice_and_resumed(root: Path, tmp_path: Path) -> None:
    twice(tiny_config(root, tmp_path))
    config = tiny_config(root, tmp_path / "early", max_minutes=1e-6)
    assert train.run(config).epochs == 1
    trainer = dataclasses.replace(config.trainer, max_minutes=None)
    train.run(dataclasses.replace(config, trainer=trainer, resume=True))
    never_wrong(digests(config.out) == digests(tmp_path / "one"), "a resumed run ended with other weights or scores")
    other = tiny_config(root, tmp_path / "other", seed=1)
    train.run(other)
    assert digests(other.out) != digests(tmp_path / "one")


def compare(root: Path, out: Path, loss_bound: float, **changes: object) -> None:
    for devices in (1, 2):
        train.run(tiny_config(root, out / str(devices), devices=devices, **changes))
    never_wrong(losses(out / "2") == pytest.approx(losses(out / "1"), rel=loss_bound), "two devices, another loss")
    one, two = (load_file(out / str(n) / "model.safetensors") for n in (1, 2))
    largest = max(float(value.abs().max()) for value in one.values())
    off = max(float((two[name] - value).abs().max()) for name, value in one.items())
    assert off <= max(WEIGHT_BOUND, loss_bound) * largest


@pytest.mark.full
@pytest.mark.fault(21, part="1 and 2 processes on the CPU: loss of every epoch within 1e-5")
def test_two_processes(root: Path, tmp_path: Path) -> None:
    compare(root, tmp_path, LOSS_BOUND, max_epochs=2)


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("mixer", ["mamba", "none"])
@pytest.mark.fault(21, part="the same seed twice on a GPU, with and without state-space layers: same hashes")
def test_twice_on_a_gpu(root: Path, tmp_path: Path, mixer: str) -> None:
    config = tiny_config(root, tmp_path, accelerator="gpu")
    model = dataclasses.replace(config.model, mixer=mixer, name="UMambaEnc", features_per_stage=(8, 16))
    twice(dataclasses.replace(config, model=model))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.fault(21, part="1 and 2 GPUs: loss of every epoch within 1e-3")
def test_two_gpus(root: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    compare(root, tmp_path, GPU_LOSS_BOUND, max_epochs=2, accelerator="gpu")
