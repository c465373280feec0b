"""U-Mamba's constructor arguments from the nnU-Net plans and the weights of a training. No torch.

Source: U-Mamba's fork of nnU-Net 2 (arXiv 2401.04722), whose trainers build the network from plans, and nnU-Net's later
plan format, which lists the network's arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["arguments_from_plans", "is_umamba"]

Shape = Sequence[int]


def is_umamba(keys: Mapping[str, Any]) -> bool:
    """Whether a state dict has the names of a U-Mamba network."""
    return any(key.startswith("encoder.stem.") for key in keys) and any("decoder.seg_layers." in key for key in keys)


def arguments_from_plans(
    plans: Mapping[str, Any], configuration: str, shapes: Mapping[str, Shape]
) -> tuple[str, dict[str, Any]]:
    """Class name and constructor arguments.

    Args:
        plans: contents of plans.json.
        configuration: such as "3d_fullres".
        shapes: of the tensors of the checkpoint, by their names: what the plans do not tell.

    Raises:
        ValueError: no such configuration, or plans or weights without something that is needed.
    """
    chosen = _configuration(plans, configuration)
    try:
        arguments = _network(plans, chosen)
        dims = len(chosen["patch_size"])
        stem = next(
            shape for key, shape in shapes.items() if key.startswith("encoder.stem.") and len(shape) == dims + 2
        )
        heads = {int(k.split(".")[2]): s for k, s in shapes.items() if k.startswith("decoder.seg_layers.")}
        arguments |= {"spatial_dims": dims, "in_channels": stem[1], "out_channels": heads[max(heads)][0]}
    except (KeyError, StopIteration, TypeError, ValueError) as error:
        raise ValueError(f"the plans of {configuration!r} do not tell U-Mamba's network ({error} missing)") from None
    arguments["deep_supervision"] = len(heads) > 1
    if any(key.startswith("encoder.mamba_layers.") for key in shapes):
        return "UMambaEnc", {**arguments, "input_size": [int(n) for n in chosen["patch_size"]]}
    return "UMambaBot", arguments


def _configuration(plans: Mapping[str, Any], name: str) -> dict[str, Any]:
    known = plans.get("configurations", {})
    if name not in known:
        raise ValueError(f"the plans have no configuration {name!r}; choose from {', '.join(known) or 'none'}")
    own = dict(known[name])
    parent = own.pop("inherits_from", None)
    return {**_configuration(plans, parent), **own} if parent else own


def _network(plans: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    listed = chosen.get("architecture", {}).get("arch_kwargs")
    if listed is not None:
        names = ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage", "n_conv_per_stage_decoder")
        return {name: listed[name] for name in names}
    kernels = chosen["conv_kernel_sizes"]
    first, most = int(chosen["UNet_base_num_features"]), int(chosen["unet_max_num_features"])
    return {
        "features_per_stage": [min(first * 2**stage, most) for stage in range(len(kernels))],
        "kernel_sizes": kernels,
        "strides": chosen["pool_op_kernel_sizes"],
        "n_conv_per_stage": chosen["n_conv_per_stage_encoder"],
        "n_conv_per_stage_decoder": chosen["n_conv_per_stage_decoder"],
    }
