"""What a training leaves after every epoch: a line of numbers, and pictures to look at."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console

from ssmvision.recipes.fusion.module import FusionModule
from ssmvision.recipes.fusion.pairs import ImagePair
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["HISTORY", "PREVIEWS", "FusionHistory", "Previews", "fused_image", "side_by_side"]

HISTORY, PREVIEWS = "metrics.csv", "previews"
COLUMNS = ("epoch", "step", "lr", "seconds", "train_loss", "val_loss", "val_intensity", "val_gradient", "val_structure")
GAP = 4


class FusionHistory(Callback):
    """Epoch, step, lr, seconds, mean training loss, and the validation's loss and terms.

    Args:
        folder: receives metrics.csv, rewritten whole after every epoch.
        console: prints a line per epoch; None is silent.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        self.path, self.console = folder / HISTORY, console
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
        assert isinstance(module, FusionModule)
        row["val_loss"] = module.validation["total"]
        row |= {f"val_{name}": value for name, value in module.validation.items() if name != "total"}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds, writes and prints the epoch's row."""
        row = {
            "epoch": float(trainer.current_epoch + 1),
            "step": float(trainer.global_step),
            "lr": float(trainer.optimizers[0].param_groups[0]["lr"]),
            "seconds": round(self._before + time.monotonic() - self._started, 3),
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
        validation = f"  validation {row['val_loss']:.4f}" if "val_loss" in row else ""
        self.console.print(
            f"epoch {done}/{epochs}  loss {row['train_loss']:.4f}{validation}  "
            f"{row['seconds']:.0f} s, {left:.0f} s left",
            highlight=False,
        )

    def _write(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow(row | {"epoch": int(row["epoch"]), "step": int(row["step"])})
        write_bytes(self.path, text.getvalue())


class Previews(Callback):
    """A picture after every epoch: a row for each pair, from left to right a, b and fused.

    Args:
        folder: receives previews/epoch_0001.png and so on.
        pairs: what is drawn.
    """

    def __init__(self, folder: Path, pairs: Sequence[ImagePair]) -> None:
        self.folder, self.pairs = folder / PREVIEWS, tuple(pairs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws them."""
        assert isinstance(pl_module, FusionModule)
        if not self.pairs:
            return
        network = pl_module.result
        training = network.training
        network.eval()
        rows = [side_by_side([pair.a, pair.b, fused_image(network, pair, pl_module.device)]) for pair in self.pairs]
        network.train(training)
        done, content = cv2.imencode(".png", _stacked(rows))
        assert done
        write_bytes(self.folder / f"epoch_{trainer.current_epoch + 1:04d}.png", content.tobytes())


@torch.no_grad()
def fused_image(network: torch.nn.Module, pair: ImagePair, device: torch.device) -> NDArray[np.float32]:
    """A pair through a network, (H, W) float32, cut to [0, 1]."""
    a, b = (torch.from_numpy(np.ascontiguousarray(x))[None, None].to(device) for x in (pair.a, pair.b))
    fused: NDArray[np.float32] = network(a, b)[0, 0].float().clamp(0, 1).cpu().numpy()
    return fused


def side_by_side(images: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Images of one height in [0, 1] in a row on white, as 8-bit gray."""
    gap = np.full((images[0].shape[0], GAP), 255, dtype=np.uint8)
    parts = [part for image in images for part in (gap, np.rint(255 * image).astype(np.uint8))]
    return np.hstack(parts[1:])


def _stacked(rows: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP), (0, width - row.shape[1])), constant_values=255) for row in rows]
    return np.vstack(padded)[:-GAP]
