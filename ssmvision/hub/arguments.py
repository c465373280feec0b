"""Constructor arguments of a network that exists, for the networks that timm does not build."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from ssmvision.layers.mamba_layer import MambaLayer
from ssmvision.layers.unet_blocks import IdentityResBlock
from ssmvision.models import FusionMamba, UMambaBot, UMambaEnc, USegS4NDBot, USegS4NDEnc
from ssmvision.models.fusion_mamba_official import constructor_arguments

__all__ = ["CLASSES", "arguments_of"]

CLASSES: dict[str, type[nn.Module]] = {
    cls.__name__: cls for cls in (FusionMamba, UMambaBot, UMambaEnc, USegS4NDBot, USegS4NDEnc)
}


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """Arguments that build a network with the same parameters, as JSON can hold them.

    Stochastic depth is not told: it is a choice of a training, not of the weights.

    Raises:
        TypeError: a class that is none of `CLASSES`.
    """
    if type(model) is FusionMamba:
        return {**constructor_arguments(model.state_dict()), "faithful": model.faithful, "gate": model.gate}
    if isinstance(model, UMambaBot | UMambaEnc) and type(model).__name__ in CLASSES:
        return _umamba_arguments(model)
    raise TypeError(
        f"a {type(model).__name__} cannot be saved: build it with timm.create_model, or use one of {', '.join(CLASSES)}"
    )


def _umamba_arguments(model: UMambaBot | UMambaEnc) -> dict[str, Any]:
    shape = model.shape
    first = cast(nn.Conv2d, next(m for m in model.encoder.stem.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)))
    arguments: dict[str, Any] = {
        "spatial_dims": shape.spatial_dims,
        "in_channels": first.in_channels,
        "out_channels": int(cast(nn.Conv2d, model.decoder.seg_layers[-1]).out_channels),
        "features_per_stage": list(shape.features),
        "kernel_sizes": [list(size) for size in shape.kernel_sizes],
        "strides": [list(size) for size in shape.strides],
        "n_conv_per_stage": list(shape.encoder_blocks),
        "n_conv_per_stage_decoder": list(shape.decoder_blocks),
        "deep_supervision": model.deep_supervision,
        "conv_bias": all(m.conv1.conv.bias is not None for m in model.modules() if isinstance(m, IdentityResBlock)),
    }
    if isinstance(model, UMambaEnc):
        arguments["input_size"] = list(model.input_size)
    named = model.mixer_name is not None and not isinstance(model, USegS4NDBot | USegS4NDEnc)
    if not any(isinstance(module, MambaLayer) for module in model.modules()):
        arguments["mixer"] = "none"
    elif named and model.mixer_name != "mamba":
        arguments["mixer"] = model.mixer_name
    if model.mixer_args:
        arguments["mixer_args"] = model.mixer_args
    return arguments
