"""The Lightning module: losses without a reference, AdamW with warm-up and cosine, moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from ssmvision.recipes.fusion.config import LossConfig, TrainerConfig
from ssmvision.recipes.fusion.losses import FusionLoss, FusionTerms
from ssmvision.recipes.fusion.network import FusionNetwork
from ssmvision.recipes.segmentation.nonfinite import first_nonfinite_module
from ssmvision.recipes.training.module import FiniteModule
from ssmvision.recipes.training.schedule import warmup_cosine

__all__ = ["FusionModule", "learning_rate"]

Batch = dict[str, Any]


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Share of the largest learning rate at a step: linear to 1, then half a cosine to 0."""
    return warmup_cosine(step, config.warmup_steps, config.max_epochs * config.steps_per_epoch)


class FusionModule(FiniteModule):
    """Trains a network that fuses two images.

    Args:
        network: (B, 1, H, W) twice to (B, 1, H, W).
        loss: what the fused image should keep.
        config: optimiser and length.

    Attributes:
        validation: means of the loss and its terms over the latest validation.

    Shape:
        A batch is {"a", "b"}: (B, 1, H, W) float32 in [0, 1].
    """

    network: FusionNetwork

    def __init__(self, network: FusionNetwork, loss: LossConfig, config: TrainerConfig) -> None:
        super().__init__(network, config.ema_decay, config.lr, config.gradient_clip)
        self.criterion, self.config = FusionLoss(loss), config
        self._terms: list[list[float]] = []

    def terms(self, batch: Batch) -> FusionTerms:
        """Loss of a batch and its terms."""
        a, b = batch["a"], batch["b"]
        terms: FusionTerms = self.criterion(self.network(a, b), a, b)
        return terms

    def on_train_epoch_start(self) -> None:
        """Stochastic depth depends on seed and epoch alone: a resumed run draws what an unbroken one would have."""
        torch.manual_seed(self.config.seed * 100_003 + self.current_epoch)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch of crops; stops the run if it is not finite."""
        loss = self.terms(batch).total
        if not bool(torch.isfinite(loss)):
            where = first_nonfinite_module(_Paired(self.network), torch.cat((batch["a"], batch["b"]), 1))
            self.stop(f"loss is {loss.item()}", where)
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Forgets the images of the last validation."""
        self._terms = []

    def validation_step(self, batch: Batch, index: int) -> None:
        """Loss of one whole pair."""
        a, b = batch["a"], batch["b"]
        self._terms.append([float(term) for term in self.criterion(self.result(a, b), a, b)])

    def on_validation_epoch_end(self) -> None:
        """Means over the pairs."""
        means = torch.tensor(self._terms, dtype=torch.float64).mean(0).tolist()
        self.validation = dict(zip(FusionTerms._fields, means, strict=True))
        self.log("val_loss", self.validation["total"], prog_bar=True)

    def configure_optimizers(self) -> Any:
        """AdamW; the schedule is a function of the step alone."""
        groups = param_groups_weight_decay(
            self.network, self.config.weight_decay, no_weight_decay_list=self.network.no_weight_decay()
        )
        optimizer = AdamW(groups, lr=self.config.lr)
        schedule = LambdaLR(optimizer, lambda step: learning_rate(step, self.config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Paired(nn.Module):
    """The network for two images stacked as channels."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, both: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, 1, H, W)."""
        fused: Tensor = self.network(both[:, :1], both[:, 1:])
        return fused
