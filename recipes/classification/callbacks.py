"""What follows a classifier's training: a line of numbers an epoch, and the best epoch."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import LightningModule
from rich.console import Console
from torch import nn

from ssmvision.recipes.classification.module import ClassificationModule
from ssmvision.recipes.segmentation.best import BestEpoch
from ssmvision.recipes.segmentation.history import HISTORY, EpochHistory

__all__ = ["HISTORY", "BestAccuracy", "ClassificationHistory"]


class ClassificationHistory(EpochHistory):
    """An epoch's numbers with the validation's loss, accuracy and balanced accuracy.

    Args:
        folder: receives metrics.csv.
        console: prints a line per epoch; None is silent.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        super().__init__(folder, ("val_loss", "val_accuracy", "val_balanced_accuracy"), console)

    def validation(self, module: LightningModule) -> dict[str, float]:
        """All of them."""
        assert isinstance(module, ClassificationModule)
        return {f"val_{name}": value for name, value in module.validation.items()}

    def validation_text(self, row: dict[str, float]) -> str:
        """The accuracy."""
        return f"  accuracy {row['val_accuracy']:.4f}" if "val_accuracy" in row else ""


class BestAccuracy(BestEpoch):
    """The best epoch by balanced accuracy, see `BestEpoch`."""

    def measured(self, module: LightningModule) -> tuple[float, dict[str, float], nn.Module]:
        """Balanced accuracy, all numbers, and the network that they are of."""
        assert isinstance(module, ClassificationModule)
        return module.validation["balanced_accuracy"], module.validation, module.result
