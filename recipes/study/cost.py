"""What a training step of a network takes, measured with nothing else running."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.study.config import StudyConfig
from ssmvision.recipes.study.trainings import model_of

__all__ = ["Cost", "measure_cost"]

WARM_UP, STEPS = 4, 10


@dataclass(frozen=True)
class Cost:
    """One network at the study's patch, batch and precision.

    Args:
        parameters: trainable numbers.
        step_ms: forward, loss, backward, clipping and optimiser on a batch that is on the device already; the median.
        memory_gb: most that torch had allocated on the GPU meanwhile, 2^30 bytes; None on a CPU.
        device: its name.
    """

    parameters: int
    step_ms: float
    memory_gb: float | None
    device: str


def measure_cost(config: StudyConfig, network: str, channels: int, classes: int, spacing_mm: Sequence[float]) -> Cost:
    """Trains on random numbers for some steps and times them.

    Args:
        config: of the study.
        network: one of `config.networks`.
        channels: of the images.
        classes: background included.
        spacing_mm: voxel size that the network sees.
    """
    trainer = config.trainer
    device = torch.device("cpu") if trainer.accelerator == "cpu" else pick_device("auto")
    architecture = plan_network(model_of(config, network), config.patch_size, spacing_mm, channels, classes)
    labels = {str(i): i for i in range(classes)}
    module = SegmentationModule(build_network(architecture), trainer, labels, config.patch_size, architecture)
    module.to(device).train()
    optimizer = module.configure_optimizers()["optimizer"]
    image = torch.randn(trainer.batch_size, channels, *config.patch_size, device=device)
    label = torch.randint(classes, (trainer.batch_size, 1, *config.patch_size), device=device)
    spacing = torch.tensor([list(spacing_mm)] * trainer.batch_size, device=device)
    cuda = device.type == "cuda"
    mixed = trainer.precision == "bf16-mixed"

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext():
            loss = module.loss(module.spaced(image, spacing), label)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.network.parameters(), trainer.gradient_clip or float("inf"))
        optimizer.step()
        if cuda:
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    for _ in range(WARM_UP):
        step()
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    seconds = sorted(step() for _ in range(STEPS))
    return Cost(
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        step_ms=1000 * seconds[STEPS // 2],
        memory_gb=torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None,
        device=torch.cuda.get_device_name(device) if cuda else "CPU",
    )
