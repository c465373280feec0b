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
from ssmvision.recipes.training.files import HISTORY, TIMES

__all__ = ["HISTORY", "TIMES", "EpochHistory", "History"]

COLUMNS = ("epoch", "step", "lr", "train_loss")


class EpochHistory(Callback):
    """Epoch, step, lr, mean training loss, and what a recipe validates, in metrics.csv; wall-clock time in times.csv.

    A resumed run writes the metrics.csv of an unbroken one, as nothing in it depends on the clock.

    Args:
        folder: receives both files, rewritten whole after every epoch.
        columns: further columns, such as those of the validation.
        console: prints a line per epoch; None is silent.

    Attributes:
        rows: one per finished epoch.
        steps: that are finished, those of a part of an epoch included.
    """

    def __init__(self, folder: Path, columns: Sequence[str], console: Console | None = None) -> None:
        self.folder, self.columns, self.console = folder, (*COLUMNS, *columns), console
        self.rows: list[dict[str, float]] = []
        self.steps = 0
        self._seconds: list[float] = []
        self._losses: list[float] = []
        self._started = self._before = 0.0
        self._validated = False

    @abstractmethod
    def validation(self, module: LightningModule) -> dict[str, float]:
        """The latest validation's numbers, by column."""

    @abstractmethod
    def validation_text(self, row: dict[str, float]) -> str:
        """What the printed line says of them; empty for a row without."""

    def training(self, module: LightningModule) -> dict[str, float]:
        """Further numbers of the epoch's training, by column."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the checkpoint keeps: of a part of an epoch, too."""
        spent = self._before + time.monotonic() - self._started
        return {
            "rows": self.rows,
            "steps": self.steps,
            "losses": self._losses,
            "seconds": self._seconds,
            "spent": spent,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the epochs before, and the part of one."""
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.steps, self._losses = state_dict["steps"], list(state_dict["losses"])
        self._seconds, self._before = list(state_dict["seconds"]), state_dict["spent"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        """Keeps the step's loss."""
        self.steps += 1
        self._losses.append(float(outputs.get("whole", outputs["loss"])))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Marks the epoch as validated; after an early stop, completes its row."""
        self._validated = True
        if trainer.state.fn != "fit" and self.rows:  # the extra validation after an early stop
            self.rows[-1] |= self.validation(pl_module)
            self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds, writes and prints the epoch's row."""
        finite = [loss for loss in self._losses if math.isfinite(loss)]
        row = {
            "epoch": float(trainer.current_epoch + 1),
            "step": float(trainer.global_step),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "train_loss": sum(finite) / len(finite) if finite else math.nan,
        }
        row |= self.training(pl_module)
        if self._validated:
            row |= self.validation(pl_module)
        self.rows.append(row)
        self._seconds.append(round(self._before + time.monotonic() - self._started, 3))
        self._losses, self._validated = [], False
        self._write(trainer)
        if self.console is not None and trainer.is_global_zero:
            self._print(row, int(trainer.max_epochs or 0))

    def _print(self, row: dict[str, float], epochs: int) -> None:
        assert self.console is not None
        done, spent = int(row["epoch"]), self._seconds[-1]
        left = spent / done * (epochs - done)
        text = self.validation_text(row)
        self.console.print(
            f"epoch {done}/{epochs}  loss {row['train_loss']:.4f}{text}  {spent:.0f} s, {left:.0f} s left",
            highlight=False,
        )

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            shown: dict[str, Any] = {k: "" if math.isnan(v) else v for k, v in row.items()}
            whole = {name: int(row[name]) for name in ("epoch", "step", "skipped") if name in row}
            writer.writerow(shown | whole)
        write_bytes(self.folder / HISTORY, text.getvalue())
        times = [f"{int(row['epoch'])},{seconds}" for row, seconds in zip(self.rows, self._seconds, strict=True)]
        write_bytes(self.folder / TIMES, "\n".join(["epoch,seconds", *times]) + "\n")


class History(EpochHistory):
    """An epoch's numbers with steps skipped so far, and validation Dice per class in val_dice and val_dice_NAME.

    Args:
        folder: receives metrics.csv.
        classes: class names.
        console: prints a line per epoch; None is silent.
    """

    def __init__(self, folder: Path, classes: list[str], console: Console | None = None) -> None:
        super().__init__(folder, ("skipped", "val_dice", *(f"val_dice_{name}" for name in classes)), console)

    def training(self, module: LightningModule) -> dict[str, float]:
        """Steps that were skipped, all epochs together."""
        assert isinstance(module, SegmentationModule)
        return {"skipped": float(module.skipped)}

    def validation(self, module: LightningModule) -> dict[str, float]:
        """Dice of each class and their mean; NaN where no case has the class."""
        assert isinstance(module, SegmentationModule)
        return {"val_dice": module.mean_dice, **{f"val_dice_{n}": value for n, value in module.validation.items()}}

    def validation_text(self, row: dict[str, float]) -> str:
        """The mean Dice."""
        return f"  Dice {row['val_dice']:.4f}" if "val_dice" in row else ""
