"""What a training leaves after every epoch: a line of numbers, and pictures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from rich.console import Console

from ssmvision.recipes.fusion.module import FusionModule
from ssmvision.recipes.fusion.pairs import ImagePair
from ssmvision.recipes.segmentation.history import HISTORY, EpochHistory
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["HISTORY", "PREVIEWS", "FusionHistory", "Previews", "fused_image", "side_by_side"]

PREVIEWS = "previews"
GAP = 4


class FusionHistory(EpochHistory):
    """An epoch's numbers with the validation's loss and terms.

    Args:
        folder: receives metrics.csv.
        console: prints a line per epoch; None is silent.
    """

    def __init__(self, folder: Path, console: Console | None = None) -> None:
        super().__init__(folder, ("val_loss", "val_intensity", "val_gradient", "val_structure"), console)

    def validation(self, module: LightningModule) -> dict[str, float]:
        """Loss and terms."""
        assert isinstance(module, FusionModule)
        return {"val_loss" if name == "total" else f"val_{name}": value for name, value in module.validation.items()}

    def validation_text(self, row: dict[str, float]) -> str:
        """The loss."""
        return f"  validation {row['val_loss']:.4f}" if "val_loss" in row else ""


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
