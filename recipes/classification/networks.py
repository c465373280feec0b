"""Networks by timm's names: made for the data at hand, started from other weights, saved as timm reads them."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import save
from timm.models import adapt_input_conv
from torch import Tensor, nn

import ssmvision.models  # noqa: F401  (registers ours)
from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import ModelConfig
from ssmvision.recipes.classification.data import Scale
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.weights import load_weights
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = [
    *("MODEL", "SavedModel", "Spec", "build", "count_all", "count_parameters", "open_model", "probabilities"),
    *("save_model", "start_from"),
]

# Folder in a run folder, and its files' names, which are timm's and the Hugging Face hub's.
MODEL, WEIGHTS, CONFIG = "model", "model.safetensors", "config.json"
FORMAT = 1


@dataclass(frozen=True)
class Spec:
    """All that a network is built from.

    Args:
        name: timm's.
        arguments: of its constructor, the sizes of the data among them.
        classes: names in the order of the outputs.
        scale: what is done to a picture first.
    """

    name: str
    arguments: dict[str, Any]
    classes: tuple[str, ...]
    scale: Scale


@dataclass(frozen=True)
class SavedModel:
    """A network with its weights in eval mode on the CPU, what it was built from, and how it was trained."""

    network: nn.Module
    spec: Spec
    training: dict[str, Any]


def build(config: ModelConfig, classes: tuple[str, ...], scale: Scale) -> tuple[nn.Module, Spec]:
    """A network for pictures of this size and these channels, with weights from torch's global generator.

    Raises:
        UserError: timm has no such model, or it does not take these arguments or this size.
    """
    if not timm.is_model(config.name):
        close = ", ".join(timm.list_models(f"*{config.name.split('_')[0]}*")[:4])
        raise UserError(f"model.name: timm has no {config.name!r}{f'; it has {close}' if close else ''}")
    arguments: dict[str, Any] = {"num_classes": len(classes), "in_chans": len(scale.mean), **config.arguments}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    sized = arguments | {"img_size": list(scale.size)}
    try:
        network = create(config.name, sized)
        arguments = sized
    except TypeError as error:
        if "img_size" not in str(error):
            raise UserError(f"model.arguments: {config.name} refuses them ({error}); correct the names") from error
        network = create(config.name, arguments)  # takes pictures of any size
    return network, Spec(config.name, arguments, classes, scale)


def create(name: str, arguments: dict[str, Any]) -> nn.Module:
    """`timm.create_model` with lists of a file as tuples, and its refusals as ours."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    try:
        return timm.create_model(name, **given)
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model: {name} cannot be built with {arguments} ({reason}); correct model.arguments"
        ) from error


def start_from(network: nn.Module, path: Path) -> str:
    """Loads other weights into a network; they may be of another resolution, other channels and other classes.

    The family's own `checkpoint_filter_fn` resamples position embeddings and the like; the classifier stays as it is
    where the number of classes differs, and the first convolution is summed or repeated over channels.

    Args:
        network: of `build`.
        path: run folder of this recipe, folder of a saved model, or .safetensors file.

    Returns:
        What was taken over, for the user.

    Raises:
        UserError: a pickle, a damaged file, or weights of another network.
    """
    tensors = load_weights(_weights_file(path))
    family = sys.modules[type(network).__module__]
    entry = sys.modules[timm.model_entrypoint(_architecture(network)).__module__]
    convert = getattr(entry, "checkpoint_filter_fn", None) or getattr(family, "checkpoint_filter_fn", None)
    if convert is not None:
        tensors = dict(convert(tensors, network))
    _adapt_channels(network, tensors)
    own = network.state_dict()
    head = {f"{name}.{end}" for name in _heads(network) for end in ("weight", "bias")}
    new = {key for key in head if key in own and key in tensors and tensors[key].shape != own[key].shape}
    taken = {key: value for key, value in tensors.items() if key not in new}
    missing = sorted(set(own) - set(taken) - head)
    strange = sorted(set(taken) - set(own))
    odd = [key for key in taken if key in own and taken[key].shape != own[key].shape]
    if missing or strange or odd:
        shape = f", {odd[0]} has {tuple(taken[odd[0]].shape)} instead of {tuple(own[odd[0]].shape)}" if odd else ""
        raise UserError(
            f"model.checkpoint: {path} is not of {_architecture(network)}: missing {missing[:3]}, "
            f"unexpected {strange[:3]}{shape}; set model.name and model.arguments as they were"
        )
    network.load_state_dict(taken, strict=False)
    fresh = sorted((set(own) & head) - set(taken))
    return f"{len(taken)} tensors of {path.name}" + (f", new: {', '.join(fresh)}" if fresh else "")


def _weights_file(path: Path) -> Path:
    places = (path / MODEL / WEIGHTS, path / WEIGHTS)
    return next((place for place in places if place.is_file()), places[0]) if path.is_dir() else path


def _architecture(network: nn.Module) -> str:
    return str(cast(dict[str, Any], network.pretrained_cfg)["architecture"])


def _names(network: nn.Module, key: str) -> tuple[str, ...]:
    value = cast(dict[str, Any], network.pretrained_cfg).get(key) or ()
    return (value,) if isinstance(value, str) else tuple(value)


def _heads(network: nn.Module) -> tuple[str, ...]:
    return _names(network, "classifier")


def _adapt_channels(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    own = network.state_dict()
    for key in (f"{name}.weight" for name in _names(network, "first_conv")):
        if key in tensors and key in own and tensors[key].dim() == 4 and tensors[key].shape[1] == 3:
            tensors[key] = adapt_input_conv(own[key].shape[1], tensors[key])


def save_model(folder: Path, network: nn.Module, spec: Spec, training: dict[str, Any]) -> Path:
    """Writes the weights (float32) and their description atomically, the description last; returns the folder.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` reads it, as does a hub to which it is uploaded.
    """
    state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
    content = save(state)
    known = cast(dict[str, Any], network.pretrained_cfg)
    scale = spec.scale
    preprocessing = {
        "input_size": [len(scale.mean), *scale.size],
        "fixed_input_size": "img_size" in spec.arguments,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center" if scale.fit == "crop" else "squash",
        "mean": scale.mean,
        "std": scale.std,
        "num_classes": len(spec.classes),
        **{key: known.get(key) for key in ("pool_size", "first_conv", "classifier")},
    }
    description = {
        "architecture": spec.name,
        "num_classes": len(spec.classes),
        "num_features": getattr(network, "num_features", None),
        "label_names": spec.classes,
        "model_args": spec.arguments,
        "pretrained_cfg": preprocessing,
        "ssmvision": {
            "format": FORMAT,
            "sha256": hashlib.sha256(content).hexdigest(),
            "training": training,
            "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "timm", "numpy")}},
        },
    }
    write_bytes(folder / WEIGHTS, content)
    write_bytes(folder / CONFIG, json.dumps(description, indent=2) + "\n")
    return folder


def open_model(run: Path) -> SavedModel:
    """A saved network.

    Args:
        run: run folder of this recipe.

    Raises:
        UserError: missing, damaged or unsuitable files, with their digest checked.
    """
    folder = run / MODEL
    path = folder / CONFIG
    description = read_json(path, "give the run folder of a finished `ssmvision classify train`")
    try:
        own, seen = description["ssmvision"], description["pretrained_cfg"]
        if own["format"] != FORMAT:
            raise UserError(f"{path}: format is {own['format']!r}, this version reads {FORMAT}; train again")
        size = (int(seen["input_size"][1]), int(seen["input_size"][2]))
        fit = "crop" if seen["crop_mode"] == "center" else "squash"
        scale = Scale(size, tuple(seen["mean"]), tuple(seen["std"]), cast(Any, fit))
        classes = tuple(str(name) for name in description["label_names"])
        spec = Spec(str(description["architecture"]), dict(description["model_args"]), classes, scale)
        digest, training = str(own["sha256"]), dict(own["training"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: unusable entry ({type(error).__name__}: {error}); restore the saved file") from None
    tensors = load_weights(folder / WEIGHTS, digest)
    network = create(spec.name, spec.arguments)
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{folder / WEIGHTS}: {reason}; use the {CONFIG} saved with these weights") from None
    return SavedModel(network.eval().requires_grad_(False), spec, training)


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def count_all(network: nn.Module) -> int:
    """Numbers of a network, trainable or not."""
    return sum(p.numel() for p in network.parameters())


def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) to float32 probabilities (B, classes)."""
    return torch.softmax(network(images).float(), -1)
