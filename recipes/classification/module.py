"""The Lightning module: cross-entropy with mixed pictures and smoothed labels, and a moving average of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import recall_score
from timm.data import Mixup
from torch import Tensor, nn

from ssmvision.recipes.classification.auxiliary import WithAuxiliaryLoss
from ssmvision.recipes.classification.config import AugmentConfig, TrainerConfig
from ssmvision.recipes.classification.optimization import make_optimizer
from ssmvision.recipes.segmentation.nonfinite import first_nonfinite_module
from ssmvision.recipes.segmentation.ranks import gather_cases, mean_over_ranks
from ssmvision.recipes.training.module import FiniteModule

__all__ = ["ClassificationModule", "class_weights"]

Batch = dict[str, Tensor]


def class_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """(classes,) float32 in inverse proportion to a class's pictures, 1 on average over the pictures.

    A class without pictures gets 0.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = np.divide(len(labels), counts * np.count_nonzero(counts), out=np.zeros(classes), where=counts > 0)
    return torch.from_numpy(weights).float()


class ClassificationModule(FiniteModule):
    """Trains a network that tells classes apart.

    Args:
        network: (B, C, H, W) to logits (B, classes).
        config: optimiser and length.
        augment: of which mixup and CutMix are done here, on whole batches.
        classes: number of classes.
        steps_per_epoch: that the schedule counts.
        cases: validation pictures over all processes.
        class_weights: (classes,) factors of the loss, see `class_weights`; None: none.

    Attributes:
        step_network: what a training step calls.
        validation: "loss", "accuracy" and "balanced_accuracy" of the latest validation.

    Shape:
        A batch is {"image": (B, C, H, W) float32, "label": (B,) int64}.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainerConfig,
        augment: AugmentConfig,
        classes: int,
        steps_per_epoch: int,
        cases: int,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(network, config.ema_decay, config.lr, config.gradient_clip)
        self.config, self.steps_per_epoch, self.cases = config, steps_per_epoch, cases
        self.mix: Mixup | None = None
        if augment.mixup > 0 or augment.cutmix > 0:
            self.mix = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_probability,
                label_smoothing=config.label_smoothing,
                num_classes=classes,
            )
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.step_network: WithAuxiliaryLoss
        object.__setattr__(self, "step_network", WithAuxiliaryLoss(network))  # its weights are the network's
        self._rows: list[list[float]] = []

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss of this process's part of a batch, and of the whole one; stops the run if it is not finite."""
        image, label = batch["image"], batch["label"]
        if self.mix is not None:
            image, soft = self.mix(image, label)
            logits, *own = self.step_network(image)
            loss = F.cross_entropy(logits.float(), soft, self.class_weights)
        else:
            smoothing = self.config.label_smoothing
            logits, *own = self.step_network(image)
            # Not torch's weighted mean, which is over the weights of a process's own share of the batch.
            total = F.cross_entropy(
                logits.float(), label, self.class_weights, label_smoothing=smoothing, reduction="sum"
            )
            loss = total / len(label)
        loss = sum(own, loss)
        if not bool(torch.isfinite(loss)):
            self.stop(f"loss is {loss.item()}", first_nonfinite_module(self.network, image))
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return {"loss": loss, "whole": mean_over_ranks(loss.detach())}

    def on_validation_epoch_start(self) -> None:
        """Forgets the pictures of the last validation."""
        self._rows = []

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss, class and predicted class of every picture."""
        logits = self.result(batch["image"]).float()
        losses = F.cross_entropy(logits, batch["label"], reduction="none")
        columns = (losses, batch["label"].float(), logits.argmax(-1).float())
        self._rows += torch.stack(columns, -1).cpu().tolist()

    def on_validation_epoch_end(self) -> None:
        """Means over the pictures of all processes."""
        losses, labels, predicted = np.asarray(gather_cases(self._rows, self.cases), dtype=np.float64).T
        self.validation = {
            "loss": float(losses.mean()),
            "accuracy": float((labels == predicted).mean()),
            "balanced_accuracy": _mean_recall(labels, predicted),
        }
        self.log("val_accuracy", self.validation["accuracy"], prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """See `optimization.make_optimizer`."""
        return make_optimizer(self.network, self.config, self.steps_per_epoch)


def _mean_recall(labels: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Mean over the classes that occur of the share of their pictures that was recognised."""
    kinds = np.unique(labels)
    return float(recall_score(labels, predicted, labels=kinds, average="macro", zero_division=0.0))
