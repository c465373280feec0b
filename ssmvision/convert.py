"""Weights of the official implementations: safe loading, unwrapping, and fitting to our models."""

from __future__ import annotations

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.errors import UserError
from ssmvision.pickled_numbers import NUMBERS

__all__ = ["checkpoint_globals", "convert_state_dict", "load_official", "unwrap_checkpoint"]

WRAPPERS = ("model", "state_dict", "network_weights")
EMA_WRAPPERS = ("model_ema", "state_dict_ema")
PREFIXES = ("module.", "_orig_mod.")


class _Settings:
    """Stands in for the configuration in the checkpoints of projects that use yacs, which need not be installed."""

    # torch fills no dicts but a few exact types, of which this one may also have attributes, as yacs's nodes do.
    def __new__(cls) -> OrderedDict[str, Any]:  # type: ignore[misc]
        return OrderedDict()


# By the names under which a checkpoint holds them; none runs code when it is filled.
SETTINGS: dict[str, Any] = {"argparse.Namespace": argparse.Namespace, "yacs.config.CfgNode": _Settings, **NUMBERS}


def checkpoint_globals() -> AbstractContextManager[object]:
    """While open, `torch.load(..., weights_only=True)` also reads the settings that training checkpoints hold."""
    return torch.serialization.safe_globals([(cls, name) for name, cls in SETTINGS.items()])


def convert_state_dict(
    model: nn.Module, state_dict: Mapping[str, Any], *, prefer_ema: bool = False, **options: Any
) -> dict[str, Tensor]:
    """Official weights as a state dict that `model.load_state_dict` takes strictly.

    Args:
        model: any of our models; its class says how its official layout is converted.
        state_dict: a state dict or a whole training checkpoint, as `load_official` returns it.
        prefer_ema: take the averaged weights where the checkpoint has both.
        options: further arguments of the model's `convert_official_state_dict`.

    Raises:
        TypeError: the model's class has no official layout.
        ValueError: keys are missing or unknown, or shapes differ; the message lists them.

    Example:
        >>> import torch
        >>> from ssmvision.models.vim import VisionMamba
        >>> model = VisionMamba(img_size=32, depth=1, embed_dim=32, num_classes=2)
        >>> official = {"model": model.state_dict()}
        >>> sorted(convert_state_dict(model, official)) == sorted(model.state_dict())
        True
    """
    convert = getattr(model, "convert_official_state_dict", None)
    if convert is None:
        raise TypeError(f"{type(model).__name__} has no official weights to convert from")
    converted: dict[str, Tensor] = convert(unwrap_checkpoint(state_dict, prefer_ema), **options)
    _check_against(model, converted)
    return converted


def unwrap_checkpoint(checkpoint: Mapping[str, Any], prefer_ema: bool = False) -> dict[str, Tensor]:
    """The bare state dict inside a checkpoint, without the prefixes of DistributedDataParallel and torch.compile.

    Raises:
        ValueError: there are no tensors where the state dict should be.
    """
    order = EMA_WRAPPERS + WRAPPERS if prefer_ema else WRAPPERS + EMA_WRAPPERS
    inner: Mapping[str, Any] | None = checkpoint
    while inner is not None:
        state = inner
        inner = next((state[key] for key in order if isinstance(state.get(key), Mapping)), None)
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if wrong or not state:
        raise ValueError(
            f"no state dict found: expected tensors by name, or such under one of {', '.join(order)}; "
            f"got {_shortened(wrong) or 'nothing'}"
        )
    return {_without_prefixes(key): value for key, value in state.items()}


def load_official(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a published checkpoint file without running any code that it may hold.

    Args:
        path: .safetensors, or a file of torch.save, which may hold tensors, plain containers, numbers (NumPy's too) and
            settings of argparse or yacs, as training checkpoints do.
        map_location: device of the tensors.

    Raises:
        UserError: the file is missing, damaged, or holds other objects.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.suffix == ".safetensors":
        return _load_safetensors(path, map_location)
    try:
        with checkpoint_globals():
            loaded = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path)) from error
    except (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: not a readable checkpoint ({reason})") from error
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path}: holds a {type(loaded).__name__}; expected a state dict or a training checkpoint")
    return dict(loaded)


def _load_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path, device=str(map_location)))
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error


def _refusal(path: Path) -> str:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, pickle.UnpicklingError):  # not a zip archive of torch.save: cannot be listed
        names = []
    found = f" ({', '.join(sorted(set(names) - set(SETTINGS)))})" if names else ""
    return (
        f"{path}: refused, since loading it could run code: it holds objects other than tensors and plain "
        f"values{found}. Get the weights as .safetensors, or, if you trust where the file comes from, load it with "
        "torch.load(..., weights_only=False) and save its state dict again."
    )


def _without_prefixes(key: str) -> str:
    while key.startswith(PREFIXES):
        key = key.split(".", 1)[1]
    return key


def _check_against(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = model.state_dict()
    misshapen = [k for k in own if k in state and state[k].shape != own[k].shape]
    problems = {
        "missing": [k for k in own if k not in state],
        "unknown": [k for k in state if k not in own],
        "of another shape": [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in misshapen],
    }
    told = "; ".join(f"{len(keys)} {what}: {_shortened(keys)}" for what, keys in problems.items() if keys)
    if told:
        raise ValueError(
            f"the weights do not fit this {type(model).__name__} ({told}). Build the model with the options that the "
            "weights were trained with (classes, channels, width, depth) and change the head afterwards."
        )


def _shortened(keys: list[str], limit: int = 8) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
