"""Accuracy of a trained classifier on the test pictures, as trained and at other resolutions."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from ssmvision.errors import UserError
from ssmvision.layers.s4nd import set_rate
from ssmvision.recipes.classification.batched import ResidentPictures
from ssmvision.recipes.classification.config import DataConfig
from ssmvision.recipes.classification.data import Scale, open_data
from ssmvision.recipes.classification.networks import SavedModel, build, open_model, start_from
from ssmvision.recipes.classification.pictures import Pictures, PictureSets
from ssmvision.recipes.devices import pick_device
from ssmvision.recipes.image_study.trainings import Training
from ssmvision.recipes.study.timing import autocast

__all__ = ["accuracies", "accuracy", "test_part"]


def test_part(sets: PictureSets) -> tuple[str, Pictures]:
    """Name and pictures of the part that classifiers are compared on.

    Raises:
        UserError: the data have none besides the training pictures.
    """
    for name, pictures in (("test", sets.test), ("validation", sets.validation)):
        if pictures is not None and len(pictures):
            return name, pictures
    raise UserError("data: no test and no validation pictures; set data.validation_fraction above 0")


@lru_cache(maxsize=1)
def _opened(data: DataConfig) -> PictureSets:
    """Kept for the next training of the same process."""
    return open_data(data)


def accuracies(training: Training) -> dict[str, Any]:
    """Of the saved weights: "accuracy", and "resolutions" by height, a text instead where the network refuses.

    Raises:
        UserError: no test pictures.
    """
    config = training.config
    saved = open_model(training.run)
    pictures = test_part(_opened(config.data))[1]
    device = torch.device("cpu") if config.trainer.accelerator == "cpu" else pick_device("auto")
    settings = (pictures, config.trainer.batch_size, device, config.trainer.precision)
    found: dict[str, float | str] = {}
    for height in config.resolutions:
        trained = saved.spec.scale
        width = round(height * trained.size[1] / trained.size[0])
        try:
            network = _resized(training, saved, (height, width))
            found[str(height)] = accuracy(network, replace(trained, size=(height, width)), *settings)
        except (UserError, ValueError, AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            found[str(height)] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return {"accuracy": accuracy(saved.network, saved.spec.scale, *settings), "resolutions": found}


def _resized(training: Training, saved: SavedModel, size: tuple[int, int]) -> nn.Module:
    """The trained network for pictures of another size; what depends on the size is resampled by its family's rule."""
    trained = saved.spec.scale
    if size == trained.size:
        return saved.network
    network, _ = build(training.model, saved.spec.classes, replace(trained, size=size))
    start_from(network, training.run)
    set_rate(network, tuple(old / new for old, new in zip(trained.size, size, strict=True)))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def accuracy(
    network: nn.Module, scale: Scale, pictures: Pictures, batch_size: int, device: torch.device, precision: str
) -> float:
    """Share of the pictures that are classified rightly."""
    network = network.to(device)
    data = ResidentPictures(pictures, scale, device)
    right = torch.zeros((), dtype=torch.int64, device=device)
    for start in range(0, len(data), batch_size):
        batch = data[list(range(start, min(start + batch_size, len(data))))]
        with autocast(device, precision):
            logits = network(batch["image"])
        right += (logits.argmax(-1) == batch["label"]).sum()
    return int(right) / len(data)
