"""The hierarchical backbone: a ConvNeXt-like network of four stages with any mixer, as registered timm models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ssmvision.models.ssm_iso import network_cfg
from ssmvision.models.ssm_network import SSMNetwork

__all__ = ["HierarchicalSSM"]


class HierarchicalSSM(SSMNetwork):
    """`SSMNetwork` with its defaults: patches of 4 pixels and four stages, each of half the size of the last.

    Example:
        >>> net = HierarchicalSSM(64, 1, 10, depths=(1, 1, 1, 1), dims=(4, 8, 8, 8))
        >>> net(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 10])
    """


default_cfgs = generate_default_cfgs(
    {"ssm_hier_tiny.untrained": network_cfg(), "ssm_hier_small.untrained": network_cfg()}
)


def _create(variant: str, pretrained: bool, kwargs: Mapping[str, Any], **preset: Any) -> HierarchicalSSM:
    settings = preset | dict(kwargs)
    feature_cfg = {"out_indices": settings.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"}
    model: HierarchicalSSM = build_model_with_cfg(
        HierarchicalSSM, variant, pretrained, feature_cfg=feature_cfg, **settings
    )
    return model


@register_model
def ssm_hier_tiny(pretrained: bool = False, **kwargs: Any) -> HierarchicalSSM:
    """Widths 96 to 768, 18 blocks, as ConvNeXt-T."""
    return _create("ssm_hier_tiny", pretrained, kwargs)


@register_model
def ssm_hier_small(pretrained: bool = False, **kwargs: Any) -> HierarchicalSSM:
    """Widths 96 to 768, 36 blocks, as ConvNeXt-S."""
    return _create("ssm_hier_small", pretrained, kwargs, depths=(3, 3, 27, 3))
