"""Saved models: model.safetensors with a model.json beside it; pickles are refused, never opened."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ssmvision import __version__
from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.architecture import build_network
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["CARD", "WEIGHTS", "ModelCard", "load_weights", "open_model", "save_model"]

WEIGHTS, CARD = "model.safetensors", "model.json"
FORMAT = 1
PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin")


@dataclass(frozen=True)
class ModelCard:
    """All that is needed to use the weights.

    Args:
        architecture: network name and constructor arguments, see `architecture.plan_network`.
        channels: names of the input channels in order.
        labels: name to id; the network's outputs are in id order.
        patch_size: window in voxels of the preprocessed grid.
        preprocessing: what is done to an image first.
        training: free description of the run (epochs, seed, scores).
    """

    architecture: dict[str, Any]
    channels: tuple[str, ...]
    labels: dict[str, int]
    patch_size: tuple[int, ...]
    preprocessing: Preprocessing
    training: dict[str, Any] = field(default_factory=dict)


def versions() -> dict[str, str]:
    """Python and the packages that shape a result."""
    names = ("torch", "monai", "lightning", "nibabel", "numpy")
    own = {"python": platform.python_version(), "ssmvision": __version__}
    return own | {name: version(name) for name in names}


def save_model(folder: Path, network: nn.Module, card: ModelCard) -> Path:
    """Writes the weights (float32, CPU) and their card atomically, card last; returns the weights' path."""
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    content = save(tensors)
    description = asdict(card) | {
        "format": FORMAT,
        "preprocessing": card.preprocessing.to_json(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": versions(),
    }
    path = folder / WEIGHTS
    write_bytes(path, content)
    write_bytes(folder / CARD, json.dumps(description, indent=2) + "\n")
    return path


def open_model(path: Path | str) -> tuple[nn.Module, ModelCard]:
    """The network with its weights, in eval mode on the CPU, and its card.

    Args:
        path: run folder, or a .safetensors file with model.json beside it.

    Raises:
        UserError: missing or damaged files, a pickle, weights that are not the card's, or keys that do not fit.
    """
    path = Path(path)
    weights = path / WEIGHTS if path.is_dir() else path
    refuse_pickle(weights)
    if weights.suffix.lower() != ".safetensors":
        raise UserError(
            f"{weights}: the ending {weights.suffix!r} is not .safetensors; give a run folder or such a file"
        )
    card_path = weights.with_name(CARD)
    description = read_json(card_path, f"copy it from the folder that {weights.name} was trained into")
    card = _card(card_path, description)
    tensors = load_weights(weights, str(description.get("sha256")))
    network = build_network(card.architecture)
    expected, found = set(network.state_dict()), set(tensors)
    if expected != found:
        name = card.architecture["name"]
        raise UserError(
            f"{weights}: does not fit {name} of {card_path}: missing {sorted(expected - found)[:3]}, "
            f"unexpected {sorted(found - expected)[:3]}; use the model.json saved with these weights"
        )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{weights}: {error}; use the model.json saved with these weights") from None
    return network.eval(), card


def _card(path: Path, description: Mapping[str, Any]) -> ModelCard:
    if description.get("format") != FORMAT:
        raise UserError(
            f"{path}: format is {description.get('format')!r}, this version reads {FORMAT}; save the model anew"
        )
    try:
        return ModelCard(
            architecture=dict(description["architecture"]),
            channels=tuple(description["channels"]),
            labels=dict(description["labels"]),
            patch_size=tuple(description["patch_size"]),
            preprocessing=Preprocessing.from_json(description["preprocessing"]),
            training=dict(description.get("training", {})),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: unusable entry ({type(error).__name__}: {error}); restore the file saved by training"
        ) from None


def refuse_pickle(path: Path) -> None:
    """Refuses files that hold or may hold a pickle, by ending and by first bytes, without loading them.

    Raises:
        UserError: the file is a pickle or missing.
    """
    advice = (
        "a pickle can run any code when opened. Ask for a .safetensors file, or convert it in an isolated environment: "
        "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
    )
    if path.suffix.lower() in PICKLES:
        raise UserError(f"{path}: {path.suffix} weights are refused: {advice}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a run folder or a .safetensors file")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file starts with an 8-byte length and "{"; torch files with a zip or pickle mark.
    if start[8:] != b"{" and (start[:2] == b"PK" or start[:1] == b"\x80"):
        raise UserError(f"{path}: starts with {start[:4]!r}, it is a renamed pickle and refused: {advice}")


def load_weights(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Tensors of a safetensors file.

    Args:
        path: the file.
        sha256: hexadecimal digest it must have; None: not checked.

    Raises:
        UserError: a pickle, a damaged file, or another digest.
    """
    refuse_pickle(path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise UserError(
            f"{path}: sha256 is {digest}, its description expects {sha256}; damaged or another file, copy it again"
        )
    try:
        tensors = load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: not a valid safetensors file ({error}); copy it again") from None
    bad = [key for key, value in tensors.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise UserError(f"{path}: non-finite values in {bad[:3]}; train again with a lower trainer.lr")
    return tensors
