"""The Lightning module: cross-entropy with mixed pictures and smoothed labels, and a moving average of the weights."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from numpy.typing import NDArray
from sklearn.metrics import recall_score
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import AugmentConfig, TrainerConfig
from ssmvision.recipes.classification.optimization import make_optimizer
from ssmvision.recipes.segmentation.nonfinite import first_nonfinite_module, first_nonfinite_parameter
from ssmvision.recipes.segmentation.ranks import gather_cases, mean_over_ranks

__all__ = ["ClassificationModule"]

Batch = dict[str, Tensor]


class ClassificationModule(LightningModule):
    """Trains a network that tells classes apart.

    Args:
        network: (B, C, H, W) to logits (B, classes).
        config: optimiser and length.
        augment: of which mixup and CutMix are done here, on whole batches.
        classes: number of classes.
        steps_per_epoch: that the schedule counts.
        cases: validation pictures over all processes.

    Attributes:
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
    ) -> None:
        super().__init__()
        self.network, self.config, self.steps_per_epoch, self.cases = network, config, steps_per_epoch, cases
        self.average: AveragedModel | None = None
        if config.ema_decay:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.mix: Mixup | None = None
        if augment.mixup > 0 or augment.cutmix > 0:
            self.mix = Mixup(
                augment.mixup,
                augment.cutmix,
                prob=augment.mix_probability,
                label_smoothing=config.label_smoothing,
                num_classes=classes,
            )
        self.soft_loss = SoftTargetCrossEntropy()
        self.validation: dict[str, float] = {}
        self._rows: list[list[float]] = []

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: the moving average, if there is one."""
        if self.average is None:
            return self.network
        averaged: nn.Module = self.average.module
        return averaged

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        """Loss of this process's part of a batch, and of the whole one; stops the run if it is not finite."""
        image, label = batch["image"], batch["label"]
        if self.mix is not None:
            image, soft = self.mix(image, label)
            loss: Tensor = self.soft_loss(self.network(image).float(), soft)
        else:
            loss = F.cross_entropy(self.network(image).float(), label, label_smoothing=self.config.label_smoothing)
        if not bool(torch.isfinite(loss)):
            self._stop(f"loss is {loss.item()}", first_nonfinite_module(self.network, image))
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return {"loss": loss, "whole": mean_over_ranks(loss.detach())}

    def _stop(self, what: str, where: str) -> NoReturn:
        raise UserError(
            f"training stopped at epoch {self.current_epoch + 1}, step {self.global_step + 1}: {what}; "
            f"first non-finite: {where}. Lower trainer.lr (now {self.config.lr:g}) or use trainer.precision=32-true; "
            "last.ckpt holds the last good epoch"
        )

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm, and refuses to step on gradients that are not finite."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip or math.inf)
        if not bool(torch.isfinite(norm)):
            name = first_nonfinite_parameter(self.network, gradients=True)
            self._stop(
                f"gradient norm is {norm.item()}", f"gradient of {name}" if name else "the norm of all gradients"
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Follows the weights by their moving average."""
        if self.average is not None:
            self.average.update_parameters(self.network)

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
