"""Saving a model as a folder, and loading it again."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from timm.models import is_model
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from ssmvision import __version__
from ssmvision.errors import UserError
from ssmvision.hub.arguments import CLASSES, arguments_of
from ssmvision.hub.card import Card, text

__all__ = ["expected_digest", "load_pretrained", "save_pretrained"]

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
SOURCES = ("local-dir:", "local_dir:")
# Under this key of config.json, where timm keeps its own, stands what only we read.
OURS, FORMAT = "ssmvision", 1


def save_pretrained(
    model: nn.Module,
    folder: Path | str,
    card: Card | None = None,
    *,
    model_args: Mapping[str, Any] | None = None,
    entries: Mapping[str, Any] | None = None,
) -> Path:
    """Write model.safetensors, config.json and README.md, which `load_pretrained` and, for its models, timm read.

    The layout is that of timm's models on the Hugging Face hub: uploaded, the folder is
    `timm.create_model("hf-hub:NAME/OF-THE-REPOSITORY", pretrained=True)` after `import ssmvision`.

    Args:
        model: of `timm.create_model`, or a FusionMamba, UMambaBot, UMambaEnc, USegS4NDBot or USegS4NDEnc.
        folder: made if there is none; files of these names in it are replaced.
        card: what README.md says. Weights that were trained on from others are usually under the licence of those.
        model_args: arguments to build the model with, where it does not tell them itself: a mixer of one's own, and
            under timm < 1.0.31 whatever was given to `create_model`.
        entries: further ones of config.json, such as timm's "label_names" (names of the classes).

    Returns:
        The folder.

    Raises:
        TypeError: a model of another class.
        ValueError: the arguments build a network with other tensors.
        UserError: the folder cannot be written.
    """
    folder = Path(folder)
    state = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    content = save(state)
    digest = hashlib.sha256(content).hexdigest()
    card = card or Card()
    config = {**(entries or {}), **_described(_config(model, model_args), card)}
    config[OURS] = {"format": FORMAT, "sha256": digest, "version": __version__}
    _check_rebuilt(config, state)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    architecture = config["architecture"]
    page = text(card, architecture, parameters, digest, architecture not in CLASSES)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The configuration, which holds the weights' checksum, last: until then the folder does not load.
        (folder / CONFIG).unlink(missing_ok=True)
        (folder / WEIGHTS).write_bytes(content)
        (folder / CARD).write_text(page, encoding="utf-8")
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write ({error.strerror}); choose another folder") from error
    return folder


def load_pretrained(folder: Path | str) -> nn.Module:
    """The model of a folder, in eval mode on the CPU; no pickle is opened.

    For another head, input size or number of channels than the saved ones, let timm adapt the weights:
    `timm.create_model("local-dir:FOLDER", pretrained=True, num_classes=10)`.

    Args:
        folder: of `save_pretrained`, or of a model that timm saved as safetensors; may be written "local-dir:FOLDER".

    Raises:
        UserError: a file is missing, damaged, or not the one that config.json describes (by its sha256, where it holds
            one); or the tensors are not the model's.
    """
    path = Path(next((str(folder)[len(s) :] for s in SOURCES if str(folder).startswith(s)), str(folder)))
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise UserError(f"{path / name}: no such file; give a folder of ssmvision.hub.save_pretrained")
    config = _read_config(path / CONFIG)
    state = _read_weights(path / WEIGHTS, config.get(OURS, {}).get("sha256"))
    try:
        model = _loaded(config, state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path / CONFIG}: does not build the model of {WEIGHTS} ({reason}); copy both again") from None
    return model.eval()


def expected_digest(weights: Path) -> str | None:
    """The sha256 that config.json beside a file of weights names for it; None where there is none.

    Raises:
        UserError: config.json is damaged.
    """
    path = weights.with_name(CONFIG)
    if weights.name != WEIGHTS or not path.is_file():
        return None
    found: str | None = _read_config(path).get(OURS, {}).get("sha256")
    return found


def _config(model: nn.Module, model_args: Mapping[str, Any] | None) -> dict[str, Any]:
    source = getattr(model, "pretrained_cfg", None)
    if not source:
        arguments = dict(model_args) if model_args is not None else arguments_of(model)
        return {"architecture": type(model).__name__, "model_args": arguments}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CONFIG
        place: Any = path  # documented as a string, of which timm 1.0.29 and 1.0.30 want to open the path
        save_config_for_hf(model, place, model_args=None if model_args is None else dict(model_args))
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config


def _loaded(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    with torch.device("meta"):  # initial values of a large network would take longer than all the rest
        model = _build(config)
    model.load_state_dict(state, assign=True)
    if any(buffer.is_meta for buffer in model.buffers()):  # some that are not saved: only the constructor knows them
        model = _build(config)
        model.load_state_dict(state)
    return model


def _build(config: Mapping[str, Any]) -> nn.Module:
    """The model without weights; made under the meta device it takes no memory."""
    architecture = config["architecture"]
    if architecture in CLASSES:
        return CLASSES[architecture](**config["model_args"])
    if not is_model(architecture):
        raise ValueError(f"unknown architecture {architecture!r}; update ssmvision and timm")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        model: nn.Module = timm.create_model(f"local-dir:{scratch}")
    return model


def _check_rebuilt(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        built = _build(config).state_dict()
    differ = sorted(
        {key for key, value in state.items() if key in built and built[key].shape != value.shape}
        | (set(state) ^ set(built))
    )
    if differ:
        raise ValueError(
            f"{config['architecture']} with {config.get('model_args', {})} has other tensors than the model "
            f"({len(differ)}: {', '.join(differ[:3])}); pass the arguments that it was built with as model_args"
        )


def _described(config: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """Without the licence and origin that timm copies: those of other weights of this architecture."""
    if "pretrained_cfg" not in config:
        return dict(config)
    told = {"license": card.licence, "origin_url": card.source, "notes": list(card.notes)}
    kept = {key: value for key, value in config["pretrained_cfg"].items() if key not in told}
    return {**config, "pretrained_cfg": kept | {key: value for key, value in told.items() if value}}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not readable JSON ({error}); copy it again") from None
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(f"{path}: names no architecture; give the file that save_pretrained wrote")
    ours = config.get(OURS, {})
    if ours and ours.get("format") != FORMAT:
        raise UserError(f"{path}: format is {ours.get('format')!r}, this version reads {FORMAT}; update ssmvision")
    return config


def _read_weights(path: Path, sha256: str | None) -> dict[str, Tensor]:
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise UserError(
            f"{path}: sha256 is {digest}, {CONFIG} expects {sha256}; damaged or another file, copy both again"
        )
    try:
        state: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise UserError(f"{path}: not a valid safetensors file ({error}); copy it again") from None
    return state
