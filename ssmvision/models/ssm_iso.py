"""The isotropic backbone: a vision transformer with any mixer in place of attention, as registered timm models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ssmvision.models.ssm_network import SSMNetwork

__all__ = ["IsotropicSSM", "network_cfg"]


class IsotropicSSM(SSMNetwork):
    """Blocks of one width at the resolution of the patches.

    Args:
        img_size, in_chans, num_classes: see `SSMNetwork`.
        patch_size: pixels from one patch to the next.
        embed_dim, depth: channels and blocks.
        patch_norm: norm after the patches.
        network: further arguments of `SSMNetwork`.

    Shape:
        (B, in_chans, *img_size) -> (B, num_classes).

    Example:
        >>> IsotropicSSM(28, 1, 10, patch_size=4, embed_dim=8, depth=1, mixer="s4nd")(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        patch_size: int | Sequence[int] = 16,
        embed_dim: int = 192,
        depth: int = 12,
        patch_norm: bool = False,
        **network: Any,
    ) -> None:
        shape: dict[str, Any] = {"patch_size": patch_size, "depths": (depth,), "dims": (embed_dim,)}
        super().__init__(img_size, in_chans, num_classes, patch_norm=patch_norm, **shape, **network)


def network_cfg(**kwargs: Any) -> dict[str, Any]:
    """What timm records of a backbone without published weights."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {"ssm_iso_tiny.untrained": network_cfg(), "ssm_iso_small.untrained": network_cfg()}
)


def _create(variant: str, pretrained: bool, kwargs: Mapping[str, Any], **preset: Any) -> IsotropicSSM:
    settings = preset | dict(kwargs)
    feature_cfg = {"out_indices": settings.pop("out_indices", 3), "feature_cls": "getter"}
    model: IsotropicSSM = build_model_with_cfg(IsotropicSSM, variant, pretrained, feature_cfg=feature_cfg, **settings)
    return model


@register_model
def ssm_iso_tiny(pretrained: bool = False, **kwargs: Any) -> IsotropicSSM:
    """Width 192, 12 blocks, patches of 16 pixels, as ViT-Ti."""
    return _create("ssm_iso_tiny", pretrained, kwargs)


@register_model
def ssm_iso_small(pretrained: bool = False, **kwargs: Any) -> IsotropicSSM:
    """Width 384, 12 blocks, patches of 16 pixels, as ViT-S."""
    return _create("ssm_iso_small", pretrained, kwargs, embed_dim=384)
