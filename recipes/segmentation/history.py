"""One line of numbers per epoch: kept in the checkpoint, written to metrics.csv, printed where no bar can be drawn."""

from __future__ import annotations

import csv
import io
import math
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["HISTORY", "EpochHistory", "History"]

HISTORY = "metrics.csv"
COLUMNS = ("epoch", "step", "lr", "seconds", "train_loss")


class EpochHistory(Callback):
    """Epoch, step, lr, seconds, mean training loss, and what a recipe validates.

    Args:
        folder: receives metrics.csv, rewritten whole after every epoch.
        validated: columns of the validation.
        console: prints a line per epoch; None is silent.
    """

    def __init__(self, folder: Path, validated: Sequence[str], console: Console | None = None) -> None:
        self.path, self.columns, self.console = folder / HISTORY, (*COLUMNS, *validated), console
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []
        self._started = self._before = 0.0
        self._validated = False

    @abstractmethod
    def validation(self, module: LightningModule) -> dict[str, float]:
        """The latest validation's numbers, by column."""

    @abstractmethod
    def validation_text(self, row: dict[str, float]) -> str:
        """What the printed line says of them; empty for a row without."""

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the rows of the epochs before."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._before = self.rows[-1]["seconds"] if self.rows else 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the last epoch's losses."""
        self._losses, self._validated = [], False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keeps the step's loss."""
        self._losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the epoch as validated; after an early stop, completes its row."""
        self._validated = True
        if trainer.state.fn != "fit" and self.rows:  # the extra validation after an early stop
            self.rows[-1] |= self.validation(pl_module)
            self._write()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds, writes and prints the epoch's row."""
        seconds = self._before + time.monotonic() - self._started
        row = {
            "epoch": float(trainer.current_epoch + 1),
            "step": float(trainer.global_step),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": round(seconds, 3),
            "train_loss": sum(self._losses) / max(1, len(self._losses)),
        }
        if self._validated:
            row |= self.validation(pl_module)
        self.rows.append(row)
        self._write()
        if self.console is not None:
            self._print(row, int(trainer.max_epochs or 0))

    def _print(self, row: dict[str, float], epochs: int) -> None:
        assert self.console is not None
        done = int(row["epoch"])
        left = row["seconds"] / done * (epochs - done)
        text = self.validation_text(row)
        self.console.print(
            f"epoch {done}/{epochs}  loss {row['train_loss']:.4f}{text}  {row['seconds']:.0f} s, {left:.0f} s left",
            highlight=False,
        )

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            shown: dict[str, Any] = {k: "" if math.isnan(v) else v for k, v in row.items()}
            writer.writerow(shown | {"epoch": int(row["epoch"]), "step": int(row["step"])})
        write_bytes(self.path, text.getvalue())


class History(EpochHistory):
    """An epoch's numbers with validation Dice per class, in columns val_dice and val_dice_NAME.

    Args:
        folder: receives metrics.csv.
        classes: class names.
        console: prints a line per epoch; None is silent.
    """

    def __init__(self, folder: Path, classes: list[str], console: Console | None = None) -> None:
        super().__init__(folder, ("val_dice", *(f"val_dice_{name}" for name in classes)), console)

    def validation(self, module: LightningModule) -> dict[str, float]:
        """Dice of each class and their mean; NaN where no case has the class."""
        assert isinstance(module, SegmentationModule)
        scores = [v for v in module.validation.values() if not math.isnan(v)]
        mean = sum(scores) / len(scores) if scores else math.nan
        return {"val_dice": mean, **{f"val_dice_{name}": value for name, value in module.validation.items()}}

    def validation_text(self, row: dict[str, float]) -> str:
        """The mean Dice."""
        return f"  Dice {row['val_dice']:.4f}" if "val_dice" in row else ""
