"""Which of our networks a published checkpoint belongs to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssmvision import models
from ssmvision.convert import convert_state_dict, unwrap_checkpoint
from ssmvision.errors import UserError
from ssmvision.hub.arguments import CLASSES
from ssmvision.models import vim, vmamba
from ssmvision.models.fusion_mamba_official import constructor_arguments
from ssmvision.models.umamba_plans import arguments_from_plans, is_umamba

__all__ = ["Target", "identify"]

HEADS = ("head.weight", "classifier.head.weight", "head.fc.weight")
STEMS = ("patch_embed.proj.weight", "patch_embed.0.weight", "stem.0.weight")
# What only the tensors of one family are named, and how its models' names start.
FAMILIES = {".mixer.A_log": "vim_", ".A_logs": "vmamba_", ".kernel.": "s4nd_"}


@dataclass(frozen=True)
class Target:
    """What a checkpoint is converted to.

    Attributes:
        name: registered with timm, or a class of `ssmvision.models`.
        build: makes the network, without these weights.
        prefer_ema: the published numbers of this network are those of the averaged weights.
    """

    name: str
    build: Callable[[], nn.Module]
    prefer_ema: bool = False


def identify(
    checkpoint: Mapping[str, Any], name: str = "", plans: Mapping[str, Any] | None = None, configuration: str = ""
) -> Target:
    """The network whose tensors these are.

    Args:
        checkpoint: of `load_official`.
        name: registered with timm, or a class, to take; "": find out.
        plans, configuration: of U-Mamba's training; by default those in the checkpoint.

    Raises:
        UserError: no network fits, several do, or U-Mamba's plans are needed.
        ValueError: the checkpoint holds no state dict.
    """
    state = unwrap_checkpoint(checkpoint)
    if name in timm.list_models():
        return _timm_target(name, state)
    if name and name not in CLASSES:
        raise UserError(f"--model {name}: not known; `ssmvision models` lists the models")
    if name == "FusionMamba" or (not name and "patch_embed1.proj.weight" in state):
        return _fusion_target(state)
    if name or is_umamba(state):
        return _umamba_target(checkpoint, state, name, plans, configuration)
    return _search(state)


def _fusion_target(state: Mapping[str, Tensor]) -> Target:
    try:
        return Target("FusionMamba", partial(models.FusionMamba, **constructor_arguments(state)))
    except KeyError as error:
        raise UserError(f"no weights of FusionMamba: {error} is missing; give another file or --model") from None


def _umamba_target(
    checkpoint: Mapping[str, Any],
    state: Mapping[str, Tensor],
    name: str,
    plans: Mapping[str, Any] | None,
    configuration: str,
) -> Target:
    training = checkpoint.get("init_args")
    training = training if isinstance(training, Mapping) else {}
    plans = plans if plans is not None else training.get("plans")
    if not isinstance(plans, Mapping):
        raise UserError(
            "U-Mamba's strides and patch size are not in its weights, and this file holds no nnU-Net plans: give "
            "--plans plans.json and --configuration, such as 3d_fullres"
        )
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    chosen = configuration or str(training.get("configuration", ""))
    try:
        found, arguments = arguments_from_plans(plans, chosen, shapes)
    except ValueError as error:
        raise UserError(f"{error}; give --plans and --configuration of the training") from None
    if name and name != found:
        raise UserError(f"--model {name}: these are weights of {found}; leave --model out")
    return Target(found, partial(CLASSES[found], **arguments))


def _timm_target(name: str, state: Mapping[str, Tensor], **settings: Any) -> Target:
    for keys, argument, axis in ((HEADS, "num_classes", 0), (STEMS, "in_chans", 1)):
        found = next((state[key] for key in keys if key in state), None)
        if found is not None:
            settings[argument] = int(found.shape[axis])
    if name.startswith("vim_") and "pos_embed" in state:
        settings["img_size"] = _vim_size(name, int(state["pos_embed"].shape[1]))
    averaged = name in vim._EMA or (name.startswith("vmamba_") and name not in vmamba._WITHOUT_EMA)
    return Target(name, partial(timm.create_model, name, **settings), averaged)


def _vim_size(name: str, tokens: int) -> int:
    """Side in pixels of the square images that have this many tokens, the class token included."""
    side = math.isqrt(tokens - 1)
    if side * side != tokens - 1:
        raise UserError(
            f"--model {name}: {tokens} position embeddings are no square grid and a class token; convert these weights "
            "with ssmvision.convert.convert_state_dict and a model of their size"
        )
    stride, patch = (8 if name.endswith("stride8") else 16), 16
    return (side - 1) * stride + patch


def _search(state: Mapping[str, Tensor]) -> Target:
    """The registered models that take these tensors at the size they are registered with."""
    families = [start for mark, start in FAMILIES.items() if any(mark in key for key in state)]
    fitting = []
    for name in (name for start in families for name in timm.list_models(f"{start}*")):
        try:
            target = _timm_target(name, state)
            with torch.device("meta"):
                model = target.build()
            convert_state_dict(model, state)
        except (UserError, ValueError):
            continue
        if getattr(model, "pretrained_cfg", {})["input_size"][1:] == _built_size(model):
            fitting.append(target)
    if len(fitting) != 1:
        several = ", ".join(target.name for target in fitting)
        said = f"several models have such tensors ({several})" if several else "no model has such tensors"
        raise UserError(f"{said}: give --model, one that `ssmvision models` lists")
    return fitting[0]


def _built_size(model: nn.Module) -> tuple[int, int]:
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    registered: tuple[int, int] = tuple(getattr(model, "pretrained_cfg", {})["input_size"][1:])
    return registered if size is None else (int(size[0]), int(size[1]))
