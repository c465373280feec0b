"""Networks by timm's names: made for the data at hand, and saved as timm and the Hugging Face hub read them."""

from __future__ import annotations

import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

import ssmvision.models  # noqa: F401  (registers ours)
from ssmvision.errors import UserError
from ssmvision.hub import Card, expected_digest, load_pretrained, save_pretrained
from ssmvision.recipes.classification.config import ModelConfig
from ssmvision.recipes.classification.data import Scale
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.weights import load_weights

__all__ = [
    *(
        "CONFIG",
        "MODEL",
        "SavedModel",
        "Spec",
        "build",
        "check_name",
        "count_all",
        "create",
        "open_model",
        "probabilities",
    ),
    *("save_model", "start_from", "weights_file"),
]

# Folder in a run folder, and the names of its files, which are the hub's.
MODEL, WEIGHTS, CONFIG = "model", "model.safetensors", "config.json"
# Classes that a model's card lists, at most.
NAMED = 20


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
    """A network for pictures of this size and these channels.

    Its weights are from torch's global generator, or with `pretrained` those that timm has, adapted by it.

    Raises:
        UserError: timm has no such model, or it does not take these arguments or this size; or timm has no weights for
            it, or cannot fetch them.
    """
    check_name(config)
    arguments: dict[str, Any] = {"num_classes": len(classes), "in_chans": len(scale.mean), **config.arguments}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    sized = arguments | {"img_size": list(scale.size)}
    try:
        network = create(config.name, sized, config.pretrained)
        arguments = sized
    except TypeError as error:
        if "img_size" not in str(error):
            raise UserError(f"model.arguments: {config.name} refuses them ({error}); correct the names") from error
        network = create(config.name, arguments, config.pretrained)  # takes pictures of any size
    return network, Spec(config.name.partition(".")[0], arguments, classes, scale)


def check_name(config: ModelConfig) -> None:
    """Refuses what timm does not have.

    Raises:
        UserError: no such model, or no weights for it although they are wanted.
    """
    name = config.name
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:4])
        raise UserError(f"model.name: timm has no {name!r}{f'; it has {close}' if close else ''}")
    architecture = name.partition(".")[0]
    tags = timm.list_pretrained(f"{architecture}.*") if config.pretrained else []
    if config.pretrained and name not in tags and not (name == architecture and tags):
        known = f"; it has {', '.join(tags[:4])}" if tags else ""
        raise UserError(f"model.pretrained: timm has no weights of {name}{known}; give a model.checkpoint or false")


def create(name: str, arguments: dict[str, Any], pretrained: bool = False) -> nn.Module:
    """`timm.create_model` with lists of a file as tuples, and its refusals as ours."""
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()
    }
    try:
        return timm.create_model(name, pretrained=pretrained, **given)
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model: {name} cannot be built with {arguments} ({reason}); correct model.arguments"
        ) from error
    except (OSError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.pretrained: timm cannot fetch the weights of {name} ({reason}); where there is no network, give "
            "model.checkpoint: a .safetensors file, or a folder with model.safetensors and config.json"
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
        UserError: a pickle, a file that is damaged or not the one that config.json beside it describes, or weights of
            another network.
    """
    file = weights_file(path)
    tensors = load_weights(file, expected_digest(file))
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


def weights_file(path: Path) -> Path:
    """The weights of a run folder, of the folder of a saved model, or the file itself."""
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
    """Writes weights, description and card as `hub.save_pretrained` does; returns the folder.

    The network's `pretrained_cfg`, which timm made for other weights, becomes that of these.
    """
    known, scale = cast(dict[str, Any], network.pretrained_cfg), spec.scale
    described = {
        "architecture": spec.name,
        "input_size": (len(scale.mean), *scale.size),
        "fixed_input_size": "img_size" in spec.arguments,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center" if scale.fit == "crop" else "squash",
        "mean": scale.mean,
        "std": scale.std,
        "num_classes": len(spec.classes),
        **{key: known.get(key) for key in ("pool_size", "first_conv", "classifier")},
    }
    entries = {
        "label_names": spec.classes,
        "training": training,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "timm", "numpy")}},
    }
    cast(Any, network).pretrained_cfg = described
    return save_pretrained(network, folder, _card(spec, training), model_args=spec.arguments, entries=entries)


def _card(spec: Spec, training: dict[str, Any]) -> Card:
    shown = ", ".join(spec.classes[:NAMED]) + (", ..." if len(spec.classes) > NAMED else "")
    scores = ", ".join(
        f"{name.replace('_', ' ')} {value:.4f}" for name, value in training.get("validation", {}).items()
    )
    return Card(
        description=f"Tells {len(spec.classes)} classes of pictures apart: {shown}.",
        notes=("Not a medical device. Pictures of another source may be classified far worse.",),
        facts={
            "input": f"{'x'.join(str(n) for n in spec.scale.size)} pixels, {len(spec.scale.mean)} channel(s)",
            **({"on its validation pictures": scores} if scores else {}),
        },
    )


def open_model(run: Path) -> SavedModel:
    """A saved network.

    Args:
        run: run folder of this recipe.

    Raises:
        UserError: missing, damaged or unsuitable files, with their digest checked.
    """
    path = run / MODEL / CONFIG
    description = read_json(path, "give the run folder of a finished `ssmvision classify train`")
    try:
        seen = description["pretrained_cfg"]
        size = (int(seen["input_size"][1]), int(seen["input_size"][2]))
        fit = "crop" if seen["crop_mode"] == "center" else "squash"
        scale = Scale(size, tuple(seen["mean"]), tuple(seen["std"]), cast(Any, fit))
        classes = tuple(str(name) for name in description["label_names"])
        spec = Spec(str(description["architecture"]), dict(description["model_args"]), classes, scale)
        training = dict(description["training"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{path}: unusable entry ({type(error).__name__}: {error}); restore the saved file") from None
    return SavedModel(load_pretrained(run / MODEL).requires_grad_(False), spec, training)


def count_all(network: nn.Module) -> int:
    """Numbers of a network, trainable or not."""
    return sum(p.numel() for p in network.parameters())


def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, H, W) to float32 probabilities (B, classes)."""
    return torch.softmax(network(images).float(), -1)
