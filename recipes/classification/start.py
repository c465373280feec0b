"""What a network starts from: random weights, those of a checkpoint, or those that timm has for its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import timm
from lightning.pytorch import seed_everything
from torch import nn

from ssmvision.recipes.classification.config import ClassifyTrainConfig, ModelConfig
from ssmvision.recipes.classification.data import Scale, measure_scale
from ssmvision.recipes.classification.networks import CONFIG, Spec, build, check_name, start_from, weights_file
from ssmvision.recipes.classification.pictures import PictureSets
from ssmvision.recipes.segmentation.datalist import read_json

__all__ = ["choose_scale", "make_network"]


def make_network(config: ClassifyTrainConfig, sets: PictureSets, scale: Scale) -> tuple[nn.Module, Spec, str]:
    """The network by the run's seed, what it is built from, and what it starts from.

    Raises:
        UserError: see `build` and `start_from`.
    """
    seed_everything(config.trainer.seed, workers=True, verbose=False)
    network, spec = build(config.model, sets.classes, scale)
    if config.model.checkpoint is not None:
        return network, spec, start_from(network, config.model.checkpoint)
    if config.model.pretrained:
        return network, spec, f"timm's weights of {config.model.name}"
    return network, spec, "random weights"


def choose_scale(config: ClassifyTrainConfig, sets: PictureSets) -> Scale:
    """That of the training pictures; with mean and deviation of the weights that training starts from, where told.

    Raises:
        UserError: see `measure_scale` and `check_name`; or the description of a checkpoint cannot be read.
    """
    scale = measure_scale(sets.training, config)
    told = _told(config.model)
    if not told.get("mean") or not told.get("std"):
        return scale
    mean, std = (_for_channels(told[name], len(scale.mean)) for name in ("mean", "std"))
    return replace(scale, mean=mean, std=std)


def _told(model: ModelConfig) -> Mapping[str, Any]:
    """What the weights to start from tell of their pictures, as timm does."""
    if model.checkpoint is not None:
        path = weights_file(model.checkpoint).with_name(CONFIG)
        described = read_json(path, "restore it") if path.is_file() else {}
        return cast(Mapping[str, Any], described.get("pretrained_cfg") or {})
    if not model.pretrained:
        return {}
    check_name(model)
    found = timm.get_pretrained_cfg(model.name)
    return {} if found is None else found.to_dict()


def _for_channels(values: Any, channels: int) -> tuple[float, ...]:
    """Of other channels, each gets the mean."""
    numbers = [float(value) for value in values]
    return tuple(numbers) if len(numbers) == channels else (sum(numbers) / len(numbers),) * channels
