"""What can be exported: runs of every recipe, folders of `ssmvision.hub`, and official weights by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import timm
from torch import Tensor, nn

import ssmvision.models  # noqa: F401  (registers ours)
from ssmvision import hub
from ssmvision.errors import UserError
from ssmvision.hub.arguments import arguments_of
from ssmvision.models import FusionMamba, UMambaBot, UMambaEnc
from ssmvision.recipes.export.config import ExportConfig

__all__ = ["Source", "is_segmentation_run", "open_source"]

CONFIG, CARD = "config.json", "model.json"
FUSION_PIXELS = (256, 256)


@dataclass(frozen=True)
class Source:
    """A network and what it takes.

    Args:
        model: in evaluation mode on the CPU.
        channels: of each input.
        size: height and width, or all three sizes.
        inputs: how many inputs `forward` takes.
        real: makes a batch (B, channels, *size) of real inputs, and says what they are; None: there are none at hand.
    """

    model: nn.Module
    channels: int
    size: tuple[int, ...]
    inputs: int = 1
    real: Callable[[], tuple[Tensor, str]] | None = None


def open_source(config: ExportConfig) -> Source:
    """The network that `config.model` names, at the size that is asked for.

    Raises:
        UserError: nothing of that name can be exported, or its files are missing or damaged.
    """
    path = config.model
    if (path / "model" / CONFIG).is_file():
        return _classifier(config)
    if _card(path).is_file():
        return _segmentation(config) if is_segmentation_run(path) else _fusion(config)
    if (path / CONFIG).is_file():
        return _of_network(hub.load_pretrained(path), config)
    if path.exists():
        raise UserError(f"{path}: holds no model/{CONFIG}, {CARD} or {CONFIG}; give the folder of a finished training")
    return _official(str(path), config)


def is_segmentation_run(path: Path) -> bool:
    """Whether the model.json there is that of a segmentation."""
    try:
        content = json.loads(_card(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # whose reader says what is wrong with it
    return not (isinstance(content, dict) and content.get("kind") == "image fusion")


def _card(path: Path) -> Path:
    return path / CARD if path.is_dir() else path.with_name(CARD)


def _segmentation(config: ExportConfig) -> Source:
    from ssmvision.recipes.segmentation.weights import open_model

    network, card = open_model(config.model)
    return Source(network, len(card.channels), _sized(config, card.patch_size))


def _fusion(config: ExportConfig) -> Source:
    from ssmvision.recipes.fusion.fuse_network import open_network

    return Source(open_network(config.model), 1, _sized(config, FUSION_PIXELS), inputs=2)


def _classifier(config: ExportConfig) -> Source:
    from ssmvision.recipes.classification.networks import open_model
    from ssmvision.recipes.export.pictures import from_folder, from_run

    saved = open_model(config.model)
    scale, folder = saved.spec.scale, config.pictures
    size = _sized(config, scale.size)
    _resize(saved.network, scale.size, size)
    real = (lambda: from_run(config.model, scale, size)) if folder is None else lambda: from_folder(folder, scale, size)
    return Source(saved.network, len(scale.mean), size, real=real)


def _official(name: str, config: ExportConfig) -> Source:
    if not timm.is_model(name.partition(".")[0]):
        raise UserError(f"{name}: no such folder, and no model of timm; give a run folder, or a folder of the hub")
    if not config.pretrained:
        raise UserError(
            f"{name}: would have random weights; pass --pretrained for the official ones, or give a run folder or one "
            "that `ssmvision convert` or ssmvision.hub.save_pretrained wrote"
        )
    try:
        return _of_network(timm.create_model(name, pretrained=True).eval(), config)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name}: official weights could not be had ({reason}); download the file and `ssmvision convert` it"
        ) from error


def _of_network(model: nn.Module, config: ExportConfig) -> Source:
    if isinstance(model, FusionMamba):
        return Source(model.for_inference(), 1, _sized(config, FUSION_PIXELS), inputs=2)
    if isinstance(model, UMambaBot | UMambaEnc):
        return Source(model, arguments_of(model)["in_channels"], _sized(config, model.fixed_input_size))
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    channels, *known = cfg["input_size"]
    size = _sized(config, tuple(known))
    _resize(model, tuple(known), size)
    folder = config.pictures
    if folder is None:
        return Source(model, channels, size)
    from ssmvision.recipes.classification.data import Scale
    from ssmvision.recipes.export.pictures import from_folder

    scale = Scale((size[0], size[1]), tuple(cfg["mean"]), tuple(cfg["std"]))
    return Source(model, channels, size, real=lambda: from_folder(folder, scale, size))


def _sized(config: ExportConfig, known: tuple[int, ...] | None) -> tuple[int, ...]:
    if config.size is None:
        if known is None:
            raise UserError(f"{config.model}: takes any size; say --size, such as [64,64,64]")
        return tuple(known)
    if min(config.size) < 1 or (known is not None and len(config.size) != len(known)):
        raise UserError(f"--size {list(config.size)}: this network takes {len(known or ())} sizes of 1 or more")
    return tuple(config.size)


def _resize(model: nn.Module, known: tuple[int, ...], size: tuple[int, ...]) -> None:
    resize = getattr(model, "set_input_size", None)
    if size != known and callable(resize):
        resize(size)
