"""VMamba's registered timm models and their published weights.

TorchScript is not supported: the scan is a custom operator whose backend is chosen at run time. Use torch.compile.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from ssmvision.convert import checkpoint_globals, unwrap_checkpoint
from ssmvision.models.vmamba_network import VMamba

__all__ = ["VMamba", "checkpoint_filter_fn"]

RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download"
NARROW, WIDE = (96, 192, 384, 768), (128, 256, 512, 1024)
# SS2D of the second release: no gate, a convolution without bias, one state.
SECOND: dict[str, Any] = {"d_state": 1, "ss2d_args": {"gate": "none", "conv_bias": False}}
# Of the first: gated, sixteen states, no MLP, Swin's stem and downsampling.
VANILLA: dict[str, Any] = {"d_state": 16, "expand": 2.0, "mlp_ratio": 0.0, "stem": "patch", "downsample": "merge"}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: VMamba, prefer_ema: bool = False) -> dict[str, Tensor]:
    """An official training checkpoint or bare state dict as a state dict of `model`.

    Args:
        state_dict: as loaded from the file.
        model: to fit the weights to.
        prefer_ema: take the averaged weights where the checkpoint has both.
    """
    return model.convert_official_state_dict(unwrap_checkpoint(state_dict, prefer_ema))


def _cfg(file: str) -> dict[str, Any]:
    return {
        "url": f"{RELEASES}/{file}",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.0",
        "classifier": "head",
        "license": "mit",
        "origin_url": "https://github.com/MzeroMiko/VMamba",
        "paper_name": "VMamba: Visual State Space Model",
        "paper_ids": "arXiv:2401.10166",
    }


default_cfgs = generate_default_cfgs(
    {
        "vmamba_tiny.in1k": _cfg("%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        "vmamba_small.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "vmamba_tiny_s2l5.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.in1k": _cfg("%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
        "vmamba_base_s2l15.in1k": _cfg("%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
        "vmamba_tiny_vanilla.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"),
        "vmamba_small_vanilla.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth"),
        "vmamba_base_vanilla.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth"),
    }
)
# The only published accuracy that is not that of averaged weights.
_WITHOUT_EMA = {"vmamba_tiny_vanilla"}


def _create(variant: str, pretrained: bool, kwargs: dict[str, Any], **preset: Any) -> VMamba:
    feature_cfg = {"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"}
    with checkpoint_globals():  # the published files hold their training's settings too
        model: VMamba = build_model_with_cfg(
            VMamba,
            variant,
            pretrained,
            pretrained_filter_fn=partial(checkpoint_filter_fn, prefer_ema=variant not in _WITHOUT_EMA),
            feature_cfg=feature_cfg,
            **(preset | kwargs),
        )
    return model


@register_model
def vmamba_tiny(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s1l8]: 30 M parameters; trained with drop_path_rate 0.2."""
    return _create("vmamba_tiny", pretrained, kwargs, depths=(2, 2, 8, 2), dims=NARROW, **SECOND)


@register_model
def vmamba_small(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s1l20]: 49 M parameters; trained with drop_path_rate 0.3."""
    return _create("vmamba_small", pretrained, kwargs, depths=(2, 2, 20, 2), dims=NARROW, **SECOND)


@register_model
def vmamba_base(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s1l20]: 87 M parameters; trained with drop_path_rate 0.5."""
    return _create("vmamba_base", pretrained, kwargs, depths=(2, 2, 20, 2), dims=WIDE, **SECOND)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-T[s2l5], twice as wide inside SS2D: 31 M parameters; trained with drop_path_rate 0.2."""
    return _create("vmamba_tiny_s2l5", pretrained, kwargs, depths=(2, 2, 5, 2), dims=NARROW, expand=2.0, **SECOND)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-S[s2l15]: 50 M parameters; trained with drop_path_rate 0.3."""
    return _create("vmamba_small_s2l15", pretrained, kwargs, depths=(2, 2, 15, 2), dims=NARROW, expand=2.0, **SECOND)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """VMamba-B[s2l15]: 89 M parameters; trained with drop_path_rate 0.6."""
    return _create("vmamba_base_s2l15", pretrained, kwargs, depths=(2, 2, 15, 2), dims=WIDE, expand=2.0, **SECOND)


@register_model
def vmamba_tiny_vanilla(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla-VMamba-T, the first release: 23 M parameters; trained with drop_path_rate 0.2."""
    return _create("vmamba_tiny_vanilla", pretrained, kwargs, depths=(2, 2, 9, 2), dims=NARROW, **VANILLA)


@register_model
def vmamba_small_vanilla(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla-VMamba-S: 44 M parameters; trained with drop_path_rate 0.3."""
    return _create("vmamba_small_vanilla", pretrained, kwargs, depths=(2, 2, 27, 2), dims=NARROW, **VANILLA)


@register_model
def vmamba_base_vanilla(pretrained: bool = False, **kwargs: Any) -> VMamba:
    """Vanilla-VMamba-B: 76 M parameters; trained with drop_path_rate 0.6."""
    return _create("vmamba_base_vanilla", pretrained, kwargs, depths=(2, 2, 27, 2), dims=WIDE, **VANILLA)
