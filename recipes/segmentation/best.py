"""The best epoch by validation Dice: its weights where they are to be saved, and the end where it stays the best."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.training.module import TrainingModule

__all__ = ["BestEpoch"]


class BestEpoch(Callback):
    """Follows the mean Dice of the validations; all of it is part of the checkpoint.

    Args:
        patience: epochs without a better validation after which training ends; None: it goes on.
        keep: keep the weights of the best epoch (on the CPU, and in the checkpoint).

    Attributes:
        epoch: the best one, from 1; 0 before the first validation with a score.
        score: its mean Dice.
        validation: its Dice per class.
        weights: of `SegmentationModule.result` after it; None without `keep`.
    """

    def __init__(self, patience: int | None = None, keep: bool = False) -> None:
        self.patience, self.keep = patience, keep
        self.epoch, self.score = 0, -math.inf
        self.validation: dict[str, float] = {}
        self.weights: dict[str, Tensor] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {name: getattr(self, name) for name in ("epoch", "score", "validation", "weights")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it up again."""
        for name, value in state_dict.items():
            setattr(self, name, value)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends a resumed run that had ended by itself."""
        self._end_if_due(trainer, trainer.current_epoch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares."""
        score, numbers, result = self.measured(pl_module)
        if score > self.score:
            # Within fit the epoch that was just trained is not counted as finished yet.
            self.epoch, self.score = trainer.current_epoch + (trainer.state.fn == "fit"), score
            self.validation = dict(numbers)
            if self.keep:
                self.weights = {k: v.detach().cpu().clone() for k, v in result.state_dict().items()}

    def measured(self, module: LightningModule) -> tuple[float, dict[str, float], nn.Module]:
        """Score of the latest validation, all its numbers, and the network that they are of."""
        assert isinstance(module, SegmentationModule)
        return module.mean_dice, module.validation, module.result

    def restore(self, module: TrainingModule) -> None:
        """Puts the weights of the best epoch, if they were kept, and its validation into the module."""
        if self.weights is not None:
            module.result.load_state_dict(self.weights)
            module.validation = dict(self.validation)

    def told(self, module: TrainingModule, trainer: Trainer) -> dict[str, Any]:
        """What a saved model tells of its training's length, and whose weights it has."""
        return {
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "saved_epoch": self.epoch if self.weights is not None else trainer.current_epoch,
            "saved_weights": "moving average" if module.average is not None else "as trained",
        }

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the training when patience is."""
        self._end_if_due(trainer, trainer.current_epoch + 1)

    def _end_if_due(self, trainer: Trainer, finished: int) -> None:
        if self.patience is not None and self.epoch and finished - self.epoch >= self.patience:
            trainer.should_stop = True
