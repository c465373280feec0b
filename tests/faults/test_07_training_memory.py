"""Fault 7: training that does not fit says which batch would, and on request goes on in parts of it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ssmvision.recipes.segmentation import train
from tests.faults.common import cli, train_words
from tests.recipes.synthetic import nnunet_folder

SHAPE = (12, 14, 10)


class Short(nn.Module):
    """A network on a device whose memory holds no more than one patch at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        if len(image) > 1 and self.training:
            raise torch.OutOfMemoryError("forced: one patch at most")
        return self.network(image)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return nnunet_folder(tmp_path / "raw", [SHAPE] * 2)


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as stream:
        return [float(row["train_loss"]) for row in csv.DictReader(stream)]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    real = train.build_network
    monkeypatch.setattr(train, "build_network", lambda architecture: Short(real(architecture)))


@pytest.mark.usefixtures("short")
@pytest.mark.fault(7, part="CPU, forced: one line with a batch that was tried and fits, status 2")
def test_message(raw: Path, tmp_path: Path) -> None:
    done = cli(*train_words(raw, tmp_path / "run"), "--trainer.batch_size", 4)
    assert done.status == 2, done.said
    last = done.said.splitlines()[-1]
    assert "out of memory in training" in last
    assert "measured to fit: trainer.batch_size=1 with patch_size 8x8x8 (now 4 with 8x8x8)" in last


@pytest.mark.usefixtures("short")
@pytest.mark.filterwarnings("default")
@pytest.mark.fault(7, part="CPU, forced: auto_halve goes on with parts whose gradients add up, and says so")
def test_parts(raw: Path, tmp_path: Path) -> None:
    words = ("--trainer.batch_size", 4, "--trainer.auto_halve", "--trainer.batch_dice", "false")
    with pytest.warns(UserWarning, match="step 1: out of memory; from here on a batch of 4 patches runs in 4 parts"):
        done = cli(*train_words(raw, tmp_path / "run"), *words)
    assert done.status == 0, done.said
    assert len(losses(tmp_path / "run")) == 2


@contextmanager
def gpu_memory(megabytes: float) -> Iterator[None]:
    """Lets this process have so much of the GPU's memory."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(megabytes * 1e6 / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def gpu_words(raw: Path, out: Path, batch: int) -> list[str]:
    sizes = {"patch_size": "[32,32,32]", "trainer.batch_size": str(batch), "model.features_per_stage": "[32,64]"}
    sizes |= {"trainer.accelerator": "gpu", "trainer.batch_dice": "false"}
    return [*train_words(raw, out), *(word for name, value in sizes.items() for word in (f"--{name}", value))]


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.fault(7, part="GPU: the advised batch trains in the memory that was short; auto_halve does too")
def test_gpu(tmp_path: Path) -> None:
    raw = nnunet_folder(tmp_path / "raw", [(40, 40, 36)] * 2)
    with gpu_memory(600):
        done = cli(*gpu_words(raw, tmp_path / "large", 32))
        assert done.status == 2, done.said
        advice = re.search(r"measured to fit: trainer\.batch_size=(\d+) with patch_size (\d+)x(\d+)x(\d+)", done.said)
        assert advice is not None, done.said
        batch, *patch = map(int, advice.groups())
        assert batch < 32
        words = ("--patch_size", str(patch))
        assert cli(*gpu_words(raw, tmp_path / "advised", batch), *words).status == 0
        if patch == [32, 32, 32]:
            with pytest.warns(UserWarning, match="out of memory; from here on a batch of 32 patches"):
                done = cli(*gpu_words(raw, tmp_path / "parts", 32), "--trainer.auto_halve")
            assert done.status == 0, done.said
