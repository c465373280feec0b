"""Published FusionMamba weights for the network without dead tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from ssmvision.layers.fusion_scan import Gate

__all__ = ["lean_state"]

CONSTANT = re.compile(r"\.base_mask$")
UNUSED = re.compile(r"^Cross_block\.0\.|\.Diff_enhance\.lastconv\.(weight|bias)$")
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
