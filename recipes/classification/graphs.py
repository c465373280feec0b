"""Forward and backward of a classifier as CUDA graphs: small networks train at the GPU's speed, not at the host's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from ssmvision.errors import UserError
from ssmvision.recipes.classification.module import ClassificationModule

__all__ = ["GraphedNetwork", "graph_network"]


def graph_network(network: nn.Module, shape: Sequence[int], device: torch.device, precision: str) -> None:
    """Records forward and backward of a network in training mode; its other calls stay as they are.

    Where it cannot be recorded, random numbers go on where they were, but torch's allocator does not end the recording
    (torch 2.11: `CUDAGraph::capture_end`): record other networks in another process.

    Args:
        network: on `device`, in training mode; must do the same work for every batch and never ask for its results.
        shape: of all batches, (B, C, H, W).
        device: a CUDA device.
        precision: "32-true" or "bf16-mixed", as the training has it.

    Raises:
        UserError: the device has no CUDA graphs, or the network cannot be recorded.
    """
    if device.type != "cuda":
        raise UserError(f"trainer.cuda_graph: true needs an Nvidia GPU, and this run is on {device.type}; give false")
    sample = torch.zeros(*shape, device=device)
    # Casts that autocast cached would be freed while the recording still reads them.
    mixed = torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16-mixed", cache_enabled=False)
    try:
        with mixed:
            torch.cuda.make_graphed_callables(network, (sample,), allow_unused_input=True)
    except RuntimeError as error:
        release_generator(torch.cuda.default_generators[sample.device.index])
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"trainer.cuda_graph: the network cannot be recorded ({reason}); give false") from error


def release_generator(generator: torch.Generator) -> None:
    """Lets random numbers be drawn again after a failed recording, which left the generator waiting for its end.

    Its state goes on as a copy of itself, which belongs to no recording.
    """
    generator.graphsafe_set_state(generator.clone_state())


class GraphedNetwork(Callback):
    """Records a training's network once its weights are on the device.

    Args:
        shape: of all batches, (B, C, H, W).
        precision: of the training.
    """

    def __init__(self, shape: Sequence[int], precision: str) -> None:
        self.shape, self.precision = tuple(shape), precision

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first step; a checkpoint is loaded by then."""
        assert isinstance(pl_module, ClassificationModule)
        pl_module.network.train()
        graph_network(pl_module.step_network, self.shape, pl_module.device, self.precision)
