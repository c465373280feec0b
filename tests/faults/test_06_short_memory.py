"""Fault 6: where memory is short, prediction takes fewer windows at a time, then the CPU, and gives the same labels."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssmvision.recipes.segmentation.infer import Predictor, load_model
from ssmvision.recipes.segmentation.memory_plan import LIBRARY_BYTES, used_bytes
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.weights import ModelCard
from tests.faults.common import cli, labels_of, never_wrong, run_folder
from tests.recipes.synthetic import OBLIQUE, ball, save

SHAPE, PATCH, BATCH = (40, 44, 36), (32, 32, 32), 256


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose windows are large enough to matter."""
    return run_folder(tmp_path_factory.mktemp("large") / "run", patch=PATCH)


@contextmanager
def address_space(headroom: int) -> Iterator[None]:
    """Lets this process have so many bytes more than it has now."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + headroom, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.fault(6, part="CPU: a memory limit makes the plan step down, told line by line; identical labels")
def test_plan_steps_down(large: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "image.nii.gz", ball(SHAPE)[0])
    words = ("predict", large, path, tmp_path / "out.nii.gz", "--device", "cpu", "--overwrite", "--threads", 1)
    assert cli(*words, "--memory_gb", 64).status == 0
    expected = labels_of(tmp_path / "out.nii.gz")
    windows = [BATCH * 3 * int(np.prod(PATCH)) * 4 >> i for i in range(3)]
    limit = (used_bytes() + LIBRARY_BYTES + (windows[0] + windows[1]) // 2) / 1e9
    done = cli(*words, "--window_batch", BATCH, "--memory_gb", limit)
    assert done.status == 0, done.said
    assert f"not {BATCH} window(s) at a time on cpu" in done.said
    never_wrong(np.array_equal(labels_of(tmp_path / "out.nii.gz"), expected), "less memory gave other labels")
    done = cli(*words, "--memory_gb", 0.05)
    assert done.status == 2
    assert "does not fit into memory" in done.said
    assert "50 MB may be used" in done.said


class Smooth(nn.Module):
    """A mean over 5 voxels through many channels, which take memory; far from a tie nearly everywhere."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.widen = nn.Conv3d(1, channels, 5, padding=2)
        self.narrow = nn.Conv3d(channels, 2, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.0)
        nn.init.constant_(self.widen.weight, 1 / 125)
        nn.init.constant_(self.narrow.weight[1], 1 / channels)

    def forward(self, window: Tensor) -> Tensor:
        return self.narrow(self.widen(window)) - torch.tensor([0.0, 0.5], device=window.device).view(1, 2, 1, 1, 1)


def smoothing(device: str, batch: int, edge: int) -> Predictor:
    labels = {"background": 0, "ball": 1}
    card = ModelCard({}, ("MRI",), labels, (edge,) * 3, Preprocessing("RAS", None, (ChannelScale("zscore"),)))
    return Predictor(Smooth(), card, device, window_batch=batch)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.fault(6, part="CPU: an allocation that fails on the way steps down too; identical labels")
def test_failed_allocation_steps_down() -> None:
    image = ball(SHAPE)[0]
    expected = smoothing("cpu", 1, 32)(image, OBLIQUE)
    assert 0.01 < expected.mean() < 0.99
    with address_space(50 * 2**20), pytest.warns(UserWarning, match=r"out of memory .* with 8 window\(s\).*using less"):
        found = smoothing("cpu", 8, 32)(image, OBLIQUE)
    never_wrong(np.array_equal(found, expected), "less memory gave other labels")


@pytest.mark.gpu
@pytest.mark.parametrize("megabytes", [2000, 400, 60, 1])
@pytest.mark.fault(6, part="GPU: out of memory at 2000, 400, 60, 1 MB: fewer windows, sums on the CPU, all of it there")
def test_gpu_steps_down(cuda: str, megabytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    image = ball((160, 150, 140))[0]
    expected = smoothing(cuda, 16, 64)(image, OBLIQUE)
    assert 0.01 < expected.mean() < 0.99
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + megabytes * 1e6) / total)
    try:
        with pytest.warns(UserWarning, match=r"out of memory .* with 16 window\(s\) at a time on cuda"):
            found = smoothing(cuda, 16, 64)(image, OBLIQUE)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    never_wrong(np.array_equal(found, expected), f"{int((found != expected).sum())} labels differ at {megabytes} MB")


def test_the_model_on_disk_is_the_one_of_the_tests(large: Path) -> None:
    assert load_model(large, "cpu").card.patch_size == PATCH
