"""Trains one network on pictures of one size, and tests it at others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from ssmvision.layers.s4nd import set_rate
from ssmvision.layers.s4nd_optim import param_groups
from ssmvision.recipes.resolution.config import DigitsConfig
from ssmvision.recipes.resolution.networks import ResidualNet, build_network
from ssmvision.recipes.resolution.pictures import Pictures, pooled
from ssmvision.recipes.segmentation.lightning_trainer import quiet_lightning

__all__ = ["Classifier", "accuracy", "train_network"]

TEST_BATCH = 100


class Classifier(LightningModule):
    """Cross entropy, AdamW with S4ND's own rules, and a cosine from `lr` to 0.

    Args:
        network: (B, 1, *grid) -> (B, classes).
        config: learning rates.
        steps: optimizer steps in all.
        scale: mean and standard deviation of the training pictures, which pictures are brought to 0 and 1.
    """

    def __init__(self, network: ResidualNet, config: DigitsConfig, steps: int, scale: tuple[float, float]) -> None:
        super().__init__()
        self.network, self.config, self.steps, self.scale = network, config, steps, scale

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (B, classes) of pictures (B, 1, *grid)."""
        mean, deviation = self.scale
        out: Tensor = self.network((images - mean) / deviation)
        return out

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Loss of a batch of pictures and classes."""
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def configure_optimizers(self) -> Any:
        """See the class."""
        groups = param_groups(self.network, self.config.lr, self.config.weight_decay, decay_vectors=False)
        optimizer = torch.optim.AdamW(groups, self.config.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _batches(images: Tensor, labels: Tensor, batch_size: int, seed: int) -> DataLoader[Any]:
    """Shuffled batches, each read from the tensors at once."""
    data = TensorDataset(images, labels)
    order = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    sampler = BatchSampler(order, batch_size, drop_last=False)
    return DataLoader(data, batch_size=None, sampler=sampler)


def train_network(method: str, pictures: Pictures, config: DigitsConfig, seed: int) -> Classifier:
    """A network of `METHODS`, trained at `config.train_size`; back on the CPU, in evaluation mode."""
    images = pooled(pictures.images, config.train_size)
    batches = _batches(images, pictures.labels, config.batch_size, seed)
    torch.manual_seed(seed)
    network = build_network(method, config)
    scale = (float(images.mean()), float(images.std()))
    module = Classifier(network, config, config.epochs * len(batches), scale)
    with quiet_lightning():
        trainer = Trainer(
            accelerator=config.accelerator,
            devices=1,
            max_epochs=config.epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, batches)
    return module.cpu().eval()


def _parts(pictures: Pictures) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(pictures.images.split(TEST_BATCH), pictures.labels.split(TEST_BATCH), strict=True)


@torch.no_grad()
def accuracy(module: Classifier, pictures: Pictures, size: int) -> float:
    """Share of pictures, pooled to `size`, that are classified rightly.

    S4ND layers are told the sampling rate: the spacing of the pixels over that in training.
    """
    set_rate(module.network, module.config.train_size / size)
    right = sum(int((module(pooled(images, size)).argmax(-1) == labels).sum()) for images, labels in _parts(pictures))
    return right / len(pictures.labels)
