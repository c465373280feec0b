"""Vision Mamba's registered timm models and their published weights.

TorchScript is not supported: the scan is a custom operator whose backend is chosen at run time. Use torch.compile.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from ssmvision.convert import unwrap_checkpoint
from ssmvision.layers.pos_embed import PosEmbedRule
from ssmvision.models.vision_mamba import VisionMamba

__all__ = ["VisionMamba", "checkpoint_filter_fn"]


def checkpoint_filter_fn(
    state_dict: Mapping[str, Any],
    model: VisionMamba,
    prefer_ema: bool = False,
    pos_embed_rule: PosEmbedRule = "class_aware",
) -> dict[str, Tensor]:
    """An official training checkpoint or bare state dict as a state dict of `model`.

    Args:
        state_dict: as loaded from the file.
        model: to fit the weights to.
        prefer_ema: take the averaged weights where the checkpoint has both.
        pos_embed_rule: see `resample_pos_embed`.
    """
    return model.convert_official_state_dict(unwrap_checkpoint(state_dict, prefer_ema), pos_embed_rule)


def _cfg(hub_id: str, filename: str, **kwargs: Any) -> dict[str, Any]:
    return {
        "hf_hub_id": hub_id,
        "hf_hub_filename": filename,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        "origin_url": "https://github.com/hustvl/Vim",
        "paper_name": "Vision Mamba",
        "paper_ids": "arXiv:2401.09417",
        # The hub's metadata and its card disagree; users must know before they ship the weights.
        "notes": ("hub metadata says apache-2.0, the model card's text says non-commercial license",),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vim_tiny.in1k": _cfg("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_76p1acc.pth"),
        "vim_tiny_stride8.in1k": _cfg("hustvl/Vim-tiny-midclstok", "vim_t_midclstok_ft_78p3acc.pth"),
        "vim_small.in1k": _cfg("hustvl/Vim-small-midclstok", "vim_s_midclstok_80p5acc.pth"),
        "vim_small_stride8.in1k": _cfg("hustvl/Vim-small-midclstok", "vim_s_midclstok_ft_81p6acc.pth"),
        "vim_base.in1k": _cfg("hustvl/Vim-base-midclstok", "vim_b_midclstok_81p9acc.pth"),
    }
)
# The published accuracy of these is that of the averaged weights in the file.
_EMA = {"vim_base"}


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **preset: Any) -> VisionMamba:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": "getter"}
    filter_fn = partial(checkpoint_filter_fn, prefer_ema=variant in _EMA)
    model: VisionMamba = build_model_with_cfg(
        VisionMamba,
        variant,
        pretrained,
        pretrained_filter_fn=filter_fn,
        feature_cfg=feature_cfg,
        **(preset | kwargs),
    )
    return model


@register_model
def vim_tiny(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti: width 192, 24 blocks, 7.1 M parameters."""
    return _create("vim_tiny", pretrained, kwargs, embed_dim=192)


@register_model
def vim_small(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S: width 384, 24 blocks, 25.8 M parameters."""
    return _create("vim_small", pretrained, kwargs, embed_dim=384)


@register_model
def vim_base(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-B: width 768, 24 blocks, 97.6 M parameters."""
    return _create("vim_base", pretrained, kwargs, embed_dim=768)


@register_model
def vim_tiny_stride8(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-Ti+: Vim-Ti with patches every 8 pixels."""
    return _create("vim_tiny_stride8", pretrained, kwargs, embed_dim=192, stride=8)


@register_model
def vim_small_stride8(pretrained: bool = False, **kwargs: Any) -> VisionMamba:
    """Vim-S+: Vim-S with patches every 8 pixels."""
    return _create("vim_small_stride8", pretrained, kwargs, embed_dim=384, stride=8)
