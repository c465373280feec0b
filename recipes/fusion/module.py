"""The Lightning module: losses without a reference, AdamW with warm-up and cosine, moving average of the weights."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.config import LossConfig, TrainerConfig
from ssmvision.recipes.fusion.losses import FusionLoss, FusionTerms
from ssmvision.recipes.fusion.network import FusionNetwork
from ssmvision.recipes.segmentation.nonfinite import first_nonfinite_module, first_nonfinite_parameter

__all__ = ["FusionModule", "learning_rate"]

Batch = dict[str, Any]


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Share of the largest learning rate at a step: linear to 1, then half a cosine to 0."""
    steps = config.max_epochs * config.steps_per_epoch
    warm = min(config.warmup_steps, steps // 2)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))


class FusionModule(LightningModule):
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

    def __init__(self, network: FusionNetwork, loss: LossConfig, config: TrainerConfig) -> None:
        super().__init__()
        self.network, self.criterion, self.config = network, FusionLoss(loss), config
        self.average: AveragedModel | None = None
        if config.ema_decay:
            self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
        self.validation: dict[str, float] = {}
        self._terms: list[list[float]] = []

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: the moving average, if there is one."""
        if self.average is None:
            return self.network
        averaged: nn.Module = self.average.module
        return averaged

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
            self._stop(f"loss is {loss.item()}", where)
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

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
