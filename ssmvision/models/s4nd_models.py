"""S4ND's registered timm models. The authors published no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from ssmvision.convert import unwrap_checkpoint
from ssmvision.models.s4nd_convnext import S4NDConvNeXt
from ssmvision.models.s4nd_vit import S4NDVisionTransformer

__all__ = ["checkpoint_filter_fn"]

RELEASED: dict[str, Any] = {"stem": "s4nd", "downsample": "s4nd"}
MICRO: dict[str, Any] = {"depths": (3, 3, 3, 3), "dims": (64, 128, 256, 512)}


def checkpoint_filter_fn(
    state_dict: Mapping[str, Any], model: S4NDConvNeXt | S4NDVisionTransformer
) -> dict[str, Tensor]:
    """A checkpoint of the authors' code, or a bare state dict, as a state dict of `model`."""
    return model.convert_official_state_dict(unwrap_checkpoint(state_dict, False))


def _cfg(first_conv: str | None, classifier: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": classifier,
        "origin_url": "https://github.com/state-spaces/s4",
        "paper_name": "S4ND: Modeling Images and Videos as Multidimensional Signals Using State Spaces",
        "paper_ids": "arXiv:2210.06583",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "s4nd_convnext_tiny.untrained": _cfg("stem.0", "head.fc"),
        "s4nd_convnext_tiny_stem.untrained": _cfg(None, "head.fc"),
        "s4nd_convnext_tiny_full.untrained": _cfg(None, "head.fc"),
        "s4nd_convnext_micro.untrained": _cfg(None, "head.fc", input_size=(3, 128, 128)),
        "s4nd_vit_base.untrained": _cfg("patch_embed.proj", "head", crop_pct=0.9, fixed_input_size=True),
    }
)


def _create(
    network: type[nn.Module], variant: str, pretrained: bool, indices: Any, kwargs: dict[str, Any], **preset: Any
) -> Any:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", indices), "feature_cls": "getter"}
    return build_model_with_cfg(
        network,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=feature_cfg,
        **(preset | kwargs),
    )


def _convnext(variant: str, pretrained: bool, kwargs: dict[str, Any], **preset: Any) -> S4NDConvNeXt:
    model: S4NDConvNeXt = _create(S4NDConvNeXt, variant, pretrained, (0, 1, 2, 3), kwargs, **preset)
    return model


@register_model
def s4nd_convnext_tiny(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """ConvNeXt-T with S4ND in its blocks only; 29,980,456 parameters."""
    return _convnext("s4nd_convnext_tiny", pretrained, kwargs)


@register_model
def s4nd_convnext_tiny_stem(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """ConvNeXt-T with S4ND in stem and blocks, strided convolutions between the stages; 30,007,057 parameters."""
    return _convnext("s4nd_convnext_tiny_stem", pretrained, kwargs, stem="s4nd")


@register_model
def s4nd_convnext_tiny_full(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """ConvNeXt-T as the authors' released configuration has it, S4ND everywhere; 29,409,457 parameters."""
    return _convnext("s4nd_convnext_tiny_full", pretrained, kwargs, **RELEASED)


@register_model
def s4nd_convnext_micro(pretrained: bool = False, **kwargs: Any) -> S4NDConvNeXt:
    """The network of the CelebA experiments, S4ND everywhere; 9,644,209 parameters with their 40 classes."""
    return _convnext("s4nd_convnext_micro", pretrained, kwargs, **{"img_size": 128} | MICRO | RELEASED)


@register_model
def s4nd_vit_base(pretrained: bool = False, **kwargs: Any) -> S4NDVisionTransformer:
    """ViT-B/16 with 1D S4ND in place of attention, no class token; 88,786,408 parameters."""
    model: S4NDVisionTransformer = _create(S4NDVisionTransformer, "s4nd_vit_base", pretrained, 3, kwargs)
    return model
