"""Published FusionMamba weights for the network without dead tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssmvision.layers.fusion_scan import Gate

__all__ = ["constructor_arguments", "lean_state"]

CONSTANT = re.compile(r"\.base_mask$")
UNUSED = re.compile(r"^Cross_block\.0\.|\.Diff_enhance\.lastconv\.(weight|bias)$")
BLOCK = re.compile(r"^(layers|layers_up)\.(\d+)\.blocks\.(\d+)\.")
SECOND = re.compile(r"\.self_attention_cross\.in_proj2\.weight$")


def lean_state(state: Mapping[str, Tensor], gate: Gate) -> dict[str, Tensor]:
    """A published state dict without constants and unused tensors.

    Args:
        state: published keys.
        gate: of the network; "official" leaves out the gate rows of `in_proj2`, which have no effect in published
            weights.

    Returns:
        A state dict of `FusionMamba(faithful=False, gate=gate)`; tensors are shared with `state`.

    Raises:
        ValueError: a mask that is one in every published network holds another value.
    """
    masks = [key for key in state if CONSTANT.search(key)]
    for key in masks:
        if not bool(torch.all(state[key] == 1)):
            raise ValueError(
                f"{key} is not all ones, as published weights have it: use faithful=True to keep its effect"
            )
    out = {key: value for key, value in state.items() if not (CONSTANT.search(key) or UNUSED.search(key))}
    if gate == "official":
        inner = {key: state[key.replace("in_proj2", "out_proj")].shape[1] for key in out if SECOND.search(key)}
        return {key: value[: inner[key]] if key in inner else value for key, value in out.items()}
    if masks:
        warnings.warn(
            "the second gates of published FusionMamba weights were never trained: with gate='own' the network needs "
            "further training; build it with gate='official' for the published function",
            UserWarning,
            stacklevel=3,
        )
    return out


def constructor_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of `FusionMamba` that these tensors were made with; published ones give the lean network of their gate.

    Args:
        state: of ours or published.

    Raises:
        KeyError: a tensor that every such network has is missing.
    """
    first = int(state["patch_embed1.proj.weight"].shape[0])
    depths = {name: _depths(state, name) for name in ("layers", "layers_up")}
    settings: dict[str, Any] = {
        "depths": depths["layers"],
        "depths_decoder": depths["layers_up"],
        "dims": tuple(first * 2**i for i in range(len(depths["layers"]))),
        "d_state": int(state["layers.0.blocks.0.op.A_logs"].shape[1]),
    }
    deepest = f"Cross_block.{len(depths['layers']) - 1}.self_attention_cross"
    if f"{deepest}.A_logs" in state:
        settings["fusion_d_state"] = int(state[f"{deepest}.A_logs"].shape[1])
        inner = int(state[f"{deepest}.out_proj.weight"].shape[1])
        published = any(key.endswith(".base_mask") for key in state)
        own = int(state[f"{deepest}.in_proj2.weight"].shape[0]) == 2 * inner and not published
        settings["gate"] = "own" if own else "official"
    coupled = state.get(f"Cross_block.{len(depths['layers']) - 1}.coupled.A_log")
    if coupled is not None:
        settings |= {"fusion_block": "coupled", "fusion_d_state": int(coupled.shape[-1])}
    return settings


def _depths(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for key in state:
        match = BLOCK.match(key)
        if match is not None and match[1] == name:
            stage, block = int(match[2]), int(match[3])
            found[stage] = max(found.get(stage, 0), block + 1)
    return tuple(found[stage] for stage in range(len(found)))
