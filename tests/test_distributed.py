"""Data-parallel training: every process's gradients are those of the joint batch in one process.

Two processes on a CPU; two on one GPU, and two with a GPU each where the machine has them.
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import ssmvision  # noqa: F401  makes the models known to timm

WORLD, PER_PROCESS = 2, 2


def model_and_batch(device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """The same in every process."""
    torch.manual_seed(0)
    model = timm.create_model("vim_tiny", img_size=32, patch_size=8, num_classes=3, depth=3).to(device)
    images = torch.randn(WORLD * PER_PROCESS, 3, 32, 32).to(device)
    return model, images, torch.arange(WORLD * PER_PROCESS, device=device) % 3


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        found[name.removeprefix("module.")] = parameter.grad.cpu()
    return found


def work(rank: int, backend: str, device_type: str, devices: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(device_type, rank % devices) if device_type == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    place = Path(folder, "store").as_uri()
    dist.init_process_group(backend, place, timedelta(seconds=120), world_size=WORLD, rank=rank)
    try:
        model, images, labels = model_and_batch(device)
        parallel = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        mine = slice(rank * PER_PROCESS, (rank + 1) * PER_PROCESS)
        for _ in range(2):  # the second step runs with the buckets rebuilt from the first
            parallel.zero_grad()
            F.cross_entropy(parallel(images[mine]), labels[mine]).backward()
        torch.save(gradients(parallel), os.path.join(folder, f"{rank}.pt"))
    finally:
        dist.destroy_process_group()


def check(backend: str, device_type: str, devices: int, folder: Path) -> None:
    spawn(work, (backend, device_type, devices, str(folder)), nprocs=WORLD)
    model, images, labels = model_and_batch(torch.device(device_type))
    # TF32 convolutions are rounded by 1e-4, and differently for each batch size.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        F.cross_entropy(model(images), labels).backward()
    expected = gradients(model)
    found: list[dict[str, Any]] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    for name, value in expected.items():
        assert torch.equal(found[0][name], found[1][name]), name
        assert (found[0][name] - value).norm() <= 1e-5 * value.norm() + 1e-12, name


@pytest.mark.slow
def test_two_processes_on_a_cpu(tmp_path: Path, one_thread: None) -> None:
    check("gloo", "cpu", 1, tmp_path)


@pytest.mark.gpu
def test_two_processes_on_one_gpu(tmp_path: Path) -> None:
    check("gloo", "cuda", 1, tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < WORLD, reason="needs two GPUs")
def test_two_gpus(tmp_path: Path) -> None:
    check("nccl", "cuda", WORLD, tmp_path)
