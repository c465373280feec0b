"""What a training step of a network takes, measured with nothing else running."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.study.config import StudyConfig
from ssmvision.recipes.study.timing import autocast, device_name, median_seconds, peak_bytes, training_step
from ssmvision.recipes.study.trainings import model_of

__all__ = ["Cost", "measure_cost"]


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

    def loss() -> Tensor:
        with autocast(device, trainer.precision):
            return module.loss(module.spaced(image, spacing), label)

    step = training_step(module.network.parameters(), optimizer, loss, trainer.gradient_clip)
    seconds, memory = median_seconds(step, device), peak_bytes(device)
    return Cost(
        parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        step_ms=1000 * seconds,
        memory_gb=None if memory is None else memory / 2**30,
        device=device_name(device),
    )
