"""The Lightning module: deep-supervised Dice + cross-entropy, poly schedule, validation on whole volumes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from monai.losses.dice import DiceCELoss
from monai.losses.ds_loss import DeepSupervisionLoss
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import TrainerConfig
from ssmvision.recipes.segmentation.infer import sliding_logits
from ssmvision.recipes.segmentation.nonfinite import first_nonfinite_module, first_nonfinite_parameter
from ssmvision.recipes.segmentation.spacing import SpacedNetwork

__all__ = ["SegmentationModule", "deep_supervision_weights", "parameter_groups"]

POLY_POWER = 0.9


def deep_supervision_weights(levels: int) -> list[float]:
    """1 / 2^i for resolution i, 0 for the lowest, normalised to sum 1 (nnU-Net's rule); one level: [1]."""
    raw = [0.5**i for i in range(levels)]
    if levels > 1:
        raw[-1] = 0.0
    return [w / sum(raw) for w in raw]


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with decay; A_log, D, biases and norms without."""
    exempt: set[str] = set()
    for prefix, module in network.named_modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            exempt |= {f"{prefix}.{name}" if prefix else name for name in names()}
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    plain = [p for n, p in trained if n in exempt or p.ndim <= 1]
    decayed = [p for n, p in trained if not (n in exempt or p.ndim <= 1)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


class SegmentationModule(LightningModule):
    """Trains a network that returns logits, or a list of logits with full resolution first.

    Args:
        network: (B, C, *spatial) to (B, K, *spatial) or a list of such.
        config: optimiser and length.
        labels: name to id, background included.
        patch_size: of the windows in validation.
        architecture: that the network was built from; its reference spacing counts.

    Attributes:
        validation: mean Dice per class of the latest validation, NaN where no case has the class.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainerConfig,
        labels: dict[str, int],
        patch_size: tuple[int, ...],
        architecture: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.network, self.config, self.patch_size = network, config, patch_size
        self.spaced = SpacedNetwork(network, architecture)
        self.classes = {name: i for name, i in labels.items() if i != 0}
        self.criterion = DiceCELoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=config.batch_dice,
            smooth_nr=1e-5,
            smooth_dr=1e-5,
        )
        self.validation: dict[str, float] = {}
        self._cases: list[list[float]] = []

    def loss(self, outputs: Tensor | list[Tensor], label: Tensor) -> Tensor:
        """Weighted sum over resolutions in float32; `label` is (B, 1, *spatial) int64."""
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        deep = DeepSupervisionLoss(self.criterion, weights=deep_supervision_weights(len(outputs)))
        return cast(Tensor, deep(outputs, label.float()))

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Loss of a batch of patches; stops the run if it is not finite."""
        loss = self.loss(self.spaced(batch["image"], batch["spacing_mm"]), batch["label"])
        if not bool(torch.isfinite(loss)):
            self._stop(f"loss is {loss.item()}", first_nonfinite_module(self.network, batch["image"]))
        self.log("train_loss", loss, prog_bar=True, on_step=True, on_epoch=False)
        return loss

    def _stop(self, what: str, where: str) -> None:
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

    def on_validation_epoch_start(self) -> None:
        """Forgets the cases of the last validation."""
        self._cases = []

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Dice per class of one whole volume, by sliding windows; NaN where nobody marks the class."""
        self.spaced.set_spacing(batch["spacing_mm"][0, : len(self.patch_size)].tolist())
        logits = sliding_logits(self._finest, batch["image"], self.patch_size)
        prediction, label = logits.argmax(1), batch["label"][:, 0]
        dice = []
        for i in self.classes.values():
            p, r = prediction == i, label == i
            size = int(p.sum()) + int(r.sum())
            dice.append(2.0 * int((p & r).sum()) / size if size else math.nan)
        self._cases.append(dice)

    def _finest(self, image: Tensor) -> Tensor:
        output = self.network(image)
        return cast(Tensor, output[0] if isinstance(output, list | tuple) else output).float()

    def on_validation_epoch_end(self) -> None:
        """Means per class over the cases that count."""
        scores = torch.tensor(self._cases, dtype=torch.float64).nanmean(0).tolist()
        self.validation = dict(zip(self.classes, scores, strict=True))
        counted = [s for s in scores if not math.isnan(s)]
        self.log("val_dice", sum(counted) / len(counted) if counted else math.nan, prog_bar=True)

    def configure_optimizers(self) -> Any:
        """SGD or AdamW with the polynomial schedule, stepped per batch."""
        c = self.config
        groups = parameter_groups(self.network, c.weight_decay)
        optimizer: Optimizer = (
            SGD(groups, lr=c.lr, momentum=c.momentum, nesterov=c.momentum > 0)
            if c.optimizer == "sgd"
            else AdamW(groups, lr=c.lr)
        )
        steps = c.max_epochs * c.steps_per_epoch
        # A function of the step alone: a resumed run takes its length from the settings, not from the checkpoint.
        schedule = LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** POLY_POWER)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
