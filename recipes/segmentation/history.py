"""One line of numbers per epoch: kept in the checkpoint, written to metrics.csv, printed where no bar can be drawn."""

from __future__ import annotations

import csv
import io
import math
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["HISTORY", "History"]

HISTORY = "metrics.csv"


class History(Callback):
    """Collects epoch, step, lr, seconds, mean training loss and validation Dice per class.

    Args:
        folder: receives metrics.csv, rewritten whole after every epoch.
        classes: class names, which become columns val_dice_NAME.
        console: prints a line per epoch; None is silent.
    """

    def __init__(self, folder: Path, classes: list[str], console: Console | None = None) -> None:
        self.path, self.classes, self.console = folder / HISTORY, classes, console
        self.rows: list[dict[str, float]] = []
        self._losses: list[float] = []
        self._started = self._before = 0.0
        self._validated = False

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
            self._add_validation(self.rows[-1], pl_module)
            self._write()

    def _add_validation(self, row: dict[str, float], module: LightningModule) -> None:
        assert isinstance(module, SegmentationModule)
        scores = [v for v in module.validation.values() if not math.isnan(v)]
        row["val_dice"] = sum(scores) / len(scores) if scores else math.nan
        row |= {f"val_dice_{name}": value for name, value in module.validation.items()}

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
            self._add_validation(row, pl_module)
        self.rows.append(row)
        self._write()
        if self.console is not None:
            self._print(row, int(trainer.max_epochs or 0))

    def _print(self, row: dict[str, float], epochs: int) -> None:
        assert self.console is not None
        done = int(row["epoch"])
        left = row["seconds"] / done * (epochs - done)
        dice = f"  Dice {row['val_dice']:.4f}" if "val_dice" in row else ""
        self.console.print(
            f"epoch {done}/{epochs}  loss {row['train_loss']:.4f}{dice}  {row['seconds']:.0f} s, {left:.0f} s left",
            highlight=False,
        )

    def _write(self) -> None:
        columns = ["epoch", "step", "lr", "seconds", "train_loss", "val_dice", *(f"val_dice_{c}" for c in self.classes)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            shown: dict[str, Any] = {k: "" if math.isnan(v) else v for k, v in row.items()}
            writer.writerow(shown | {"epoch": int(row["epoch"]), "step": int(row["step"])})
        write_bytes(self.path, text.getvalue())
