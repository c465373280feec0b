"""Saved fusion networks: model.safetensors with a model.json beside it; pickles are refused, never opened."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.config import ModelConfig
from ssmvision.recipes.fusion.network import FusionNetwork, build_network

__all__ = ["CARD", "WEIGHTS", "FusionCard", "open_model", "open_shipped", "save_model"]

WEIGHTS, CARD = "model.safetensors", "model.json"
KIND, FORMAT = "image fusion", 1
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")


@dataclass(frozen=True)
class FusionCard:
    """All that is needed to use the weights.

    Args:
        model: the network.
        training: free description of the run (data, epochs, seed, losses).
    """

    model: ModelConfig
    training: dict[str, Any] = field(default_factory=dict)


def save_model(folder: Path, network: nn.Module, card: FusionCard, dtype: torch.dtype = torch.float32) -> Path:
    """Writes the weights and their card atomically, card last; returns the weights' path.

    Args:
        folder: receives both.
        network: of `build_network(card.model)`.
        card: what to say about it.
        dtype: that floating-point weights are stored in; they are read back as float32.
    """
    from ssmvision.recipes.segmentation.writing import write_bytes

    state = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    tensors = {k: (v.to(dtype) if v.is_floating_point() else v).contiguous().clone() for k, v in state.items()}
    content = save(tensors)
    description = {
        "kind": KIND,
        "format": FORMAT,
        **json.loads(json.dumps(asdict(card))),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "timm", "numpy")}},
    }
    path = folder / WEIGHTS
    write_bytes(path, content)
    write_bytes(folder / CARD, json.dumps(description, indent=2) + "\n")
    return path


def open_model(path: Path | str | None = None) -> tuple[FusionNetwork, FusionCard]:
    """The network with its weights, in eval mode on the CPU, and its card.

    Args:
        path: run folder, or a .safetensors file with model.json beside it; None: the weights that ship.

    Raises:
        UserError: missing or damaged files, a pickle, weights that are not the card's, or keys that do not fit.
    """
    if path is None:
        return open_shipped()
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    if weights.suffix.lower() in PICKLES:
        raise UserError(
            f"{weights}: {weights.suffix} weights are refused, since a pickle can run any code when opened; give a "
            ".safetensors file"
        )
    card_path = weights.with_name(CARD)
    for needed in (weights, card_path):
        if not needed.is_file():
            raise UserError(f"{needed}: no such file; give a run folder, or {WEIGHTS} with {CARD} beside it")
    return _opened(weights.read_bytes(), card_path.read_text(encoding="utf-8"), weights, card_path)


def open_shipped() -> tuple[FusionNetwork, FusionCard]:
    """`open_model` of the small network that ships with the package."""
    with as_file(files("ssmvision.recipes.fusion").joinpath("pretrained")) as folder:
        return open_model(folder)


def _opened(content: bytes, text: str, weights: Path, card_path: Path) -> tuple[FusionNetwork, FusionCard]:
    description, card = _card(card_path, text)
    digest = hashlib.sha256(content).hexdigest()
    if digest != description.get("sha256"):
        raise UserError(
            f"{weights}: sha256 is {digest}, {CARD} expects {description.get('sha256')}; damaged or another file, copy "
            "both again"
        )
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise UserError(f"{weights}: not a valid safetensors file ({error}); copy it again") from None
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"{weights}: non-finite values in {bad[:3]}; train again with a lower trainer.lr")
    network = build_network(card.model)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{weights}: {reason}; use the {CARD} saved with these weights") from None
    return network.eval(), card


def _card(path: Path, text: str) -> tuple[dict[str, Any], FusionCard]:
    try:
        description: dict[str, Any] = json.loads(text)
        if (description["kind"], description["format"]) != (KIND, FORMAT):
            found = f"{description['kind']!r} in format {description['format']!r}"
            raise UserError(f"{path}: describes {found}, expected {KIND!r} in format {FORMAT}; give a fusion network")
        return description, FusionCard(_model(description["model"]), dict(description["training"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: unusable ({type(error).__name__}: {error}); give the {CARD} that a fusion training saved"
        ) from None


def _model(values: Mapping[str, Any]) -> ModelConfig:
    settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    return ModelConfig(**settings)
