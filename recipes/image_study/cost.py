"""What training and using a classifier takes, measured with nothing else running."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ssmvision.errors import UserError
from ssmvision.flops import count
from ssmvision.recipes.classification.config import ModelConfig
from ssmvision.recipes.classification.data import Scale
from ssmvision.recipes.classification.graphs import graph_network
from ssmvision.recipes.classification.module import ClassificationModule
from ssmvision.recipes.classification.networks import build, count_all
from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.image_study.config import ImageStudyConfig
from ssmvision.recipes.study.timing import autocast, device_name, median_seconds, peak_bytes, training_step

__all__ = ["OFF", "RECORDED", "Cost", "measure_cost"]

SINGLE_CALLS = 30
RECORDED, OFF = "recorded", "off"


@dataclass(frozen=True)
class Cost:
    """One classifier at the study's picture size and precision; times are medians.

    Args:
        parameters: numbers of the network.
        macs: multiply-accumulates of one picture by the rule of `ssmvision.flops`.
        step_ms: forward, loss, backward, clipping and optimiser on a batch that is on the device already.
        training_per_s: pictures.
        inference_per_s: pictures, at the study's batch of inference.
        latency_ms: of one picture alone.
        memory_mb: most that torch had allocated on the GPU in training, 2^20 bytes; None on a CPU.
        graph: "recorded" where the network of the training step was a CUDA graph, "off" where it was not to be, or why
            it cannot be. Inference is without.
        device: its name.
    """

    parameters: int
    macs: int
    step_ms: float
    training_per_s: float
    inference_per_s: float
    latency_ms: float
    memory_mb: float | None
    graph: str
    device: str


def measure_cost(config: ImageStudyConfig, model: ModelConfig, classes: tuple[str, ...], scale: Scale) -> Cost:
    """Trains on random numbers for some steps, then classifies them.

    Args:
        config: of the study.
        model: an entry's, at the width that the study found.
        classes, scale: of the data.
    """
    t = config.trainer
    device = torch.device("cpu") if t.accelerator == "cpu" else pick_device("auto")
    network, _ = build(model, classes, scale)
    macs = count(network.eval(), torch.zeros(1, len(scale.mean), *scale.size)).macs
    module = ClassificationModule(network, t, config.augment, len(classes), 1, 0).to(device).train()
    optimizer = module.configure_optimizers()["optimizer"]
    images = torch.randn(max(t.batch_size, config.inference_batch), len(scale.mean), *scale.size, device=device)
    labels = torch.randint(len(classes), (t.batch_size,), device=device)

    def loss() -> Tensor:
        with autocast(device, t.precision):
            logits, *own = module.step_network(images[: t.batch_size])
        return sum(own, functional.cross_entropy(logits.float(), labels, label_smoothing=t.label_smoothing))

    step = training_step(network.parameters(), optimizer, loss, t.gradient_clip)
    seconds, memory = median_seconds(step, device), peak_bytes(device)
    graph = _recorded(module, images[: t.batch_size], t.precision) if t.cuda_graph else OFF
    if graph == RECORDED:  # memory is that of the step without, as recordings have a pool of their own
        seconds = median_seconds(step, device)
    optimizer.zero_grad()
    network.eval()

    @torch.inference_mode()
    def classify(batch: int) -> None:
        with autocast(device, t.precision):
            network(images[:batch])

    whole = median_seconds(lambda: classify(config.inference_batch), device)
    single = median_seconds(lambda: classify(1), device, SINGLE_CALLS)
    return Cost(
        parameters=count_all(network),
        macs=macs,
        step_ms=1000 * seconds,
        training_per_s=t.batch_size / seconds,
        inference_per_s=config.inference_batch / whole,
        latency_ms=1000 * single,
        memory_mb=None if memory is None else memory / 2**20,
        graph=graph,
        device=device_name(device),
    )


def _recorded(module: ClassificationModule, images: Tensor, precision: str) -> str:
    """See `Cost.graph`."""
    try:
        graph_network(module.step_network, images.shape, images.device, precision)
    except UserError as error:
        if not images.is_cuda:
            raise
        return str(error)
    return RECORDED
