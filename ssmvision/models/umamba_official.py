"""How U-Mamba's own code names things: constructor arguments and checkpoint keys.

Source: the U-Mamba repository (arXiv 2401.04722). Its checkpoints register the encoder twice (the decoder holds it) and
every convolution and norm of a BasicBlockD twice (`all_modules`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["canonical_key", "canonical_state", "constructor_arguments", "official_state"]

RENAMED = {"input_channels": "in_channels", "num_classes": "out_channels"}
SAME = (
    "input_size",
    "n_stages",
    "features_per_stage",
    "kernel_sizes",
    "strides",
    "n_conv_per_stage",
    "n_conv_per_stage_decoder",
    "conv_bias",
    "deep_supervision",
)
FIXED_NORM = {"eps": 1e-5, "affine": True, "momentum": 0.1, "track_running_stats": False}
FIXED_NONLIN = {"inplace": True, "negative_slope": 0.01}

ALIAS = re.compile(r"^(?P<block>.+\.conv[12])\.all_modules\.(?P<index>[01])\.(?P<leaf>weight|bias)$")
PARTS = ("conv", "norm")
TWIN = re.compile(r"^(?P<block>.+\.conv[12])\.norm\.bias$")
NESTED = "decoder.encoder."


def _class_name(value: Any) -> str:
    """Name of a class given itself or, as in nnU-Net's plans, by dotted path."""
    return str(value).rpartition(".")[2] if isinstance(value, str) else str(getattr(value, "__name__", value))


def _fixed(name: str, value: Any, allowed: Mapping[str, Any]) -> None:
    wrong = {k: v for k, v in (value or {}).items() if k not in allowed or allowed[k] != v}
    if wrong:
        raise ValueError(f"{name}: {wrong} is not what U-Mamba's networks use ({dict(allowed)})")


def constructor_arguments(official: Mapping[str, Any]) -> dict[str, Any]:
    """Our constructor's arguments from those of the official classes.

    Args:
        official: keyword arguments of the official UMambaBot or UMambaEnc (2D or 3D); classes may be dotted names.
            `conv_op` tells the spatial dimensions. `stem_channels` has no effect, as there. `conv_bias` is True if
            absent, as in every published configuration.

    Raises:
        ValueError: a norm, nonlinearity or dropout that these networks do not have, or no conv_op.
        TypeError: an unknown argument.
    """
    left = dict(official)
    conv = _class_name(left.pop("conv_op", None))
    if conv not in ("Conv2d", "Conv3d"):
        raise ValueError(f"conv_op must be Conv2d or Conv3d, got {conv}")
    dims = int(conv[4])
    norm = _class_name(left.pop("norm_op", None) or f"InstanceNorm{dims}d")
    nonlin = _class_name(left.pop("nonlin", None) or "LeakyReLU")
    if norm != f"InstanceNorm{dims}d" or nonlin != "LeakyReLU":
        raise ValueError(f"U-Mamba's networks use InstanceNorm{dims}d and LeakyReLU, got {norm} and {nonlin}")
    _fixed("norm_op_kwargs", left.pop("norm_op_kwargs", None), FIXED_NORM)
    _fixed("nonlin_kwargs", left.pop("nonlin_kwargs", None), FIXED_NONLIN)
    if left.pop("dropout_op", None) is not None:
        raise ValueError("dropout_op: U-Mamba's networks have no dropout; pass None")
    left.pop("dropout_op_kwargs", None)
    left.pop("stem_channels", None)
    ours = {"spatial_dims": dims, **{RENAMED[k]: left.pop(k) for k in RENAMED if k in left}}
    ours |= {k: left.pop(k) for k in SAME if k in left}
    if left:
        raise TypeError(f"not an argument of U-Mamba's networks: {', '.join(left)}")
    if isinstance(ours.get("strides"), int):  # there an int is every stage's stride, ours leaves stage 0 at 1
        ours["strides"] = [ours["strides"]] * ours["n_stages"]
    return ours


def canonical_key(key: str) -> str:
    """The one key that a parameter has in our networks, from any of the keys that an official checkpoint gives it."""
    if key.startswith(NESTED):
        key = key.removeprefix("decoder.")
    alias = ALIAS.match(key)
    return f"{alias['block']}.{PARTS[int(alias['index'])]}.{alias['leaf']}" if alias else key


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def canonical_state(state: Mapping[str, Tensor], own_keys: set[str]) -> dict[str, Tensor]:
    """An official state dict without its duplicates.

    Raises:
        ValueError: two keys of one parameter hold different values, or a key is none of `own_keys`.
    """
    out: dict[str, Tensor] = {}
    unexpected = []
    for key, value in state.items():
        name = canonical_key(key)
        if name not in own_keys:
            unexpected.append(key)
        elif name in out and not _same(out[name], value):
            raise ValueError(f"{key} and its twin {name} hold different values: the checkpoint is damaged or edited")
        else:
            out.setdefault(name, value)
    if unexpected:
        shown = ", ".join(unexpected[:5]) + (" ..." if len(unexpected) > 5 else "")
        raise ValueError(f"{len(unexpected)} keys of the checkpoint do not belong to this network: {shown}")
    return out


def official_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict with every duplicate key of an official checkpoint, in the official order; tensors are shared."""
    with_twins: dict[str, Tensor] = {}
    for key, value in state.items():
        with_twins[key] = value
        twin = TWIN.match(key)
        if twin:
            names = [f"{part}.{leaf}" for part in PARTS for leaf in ("weight", "bias")]
            keys = [f"{twin['block']}.{name}" for name in names]
            with_twins |= {
                k.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1."): state[k]
                for k in keys
                if k in state
            }
    out = {k: v for k, v in with_twins.items() if not k.startswith("decoder.")}
    out |= {f"decoder.{k}": v for k, v in with_twins.items() if k.startswith("encoder.")}
    return out | {k: v for k, v in with_twins.items() if k.startswith("decoder.")}
