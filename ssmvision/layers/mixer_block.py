"""The block of the backbones that take any mixer: a token mixer and a channel mixer, each in its residual branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers import DropPath
from torch import Tensor, nn

from ssmvision.layers.channel_mixers import build_channel_mixer
from ssmvision.layers.mixers import build_mixer, resolve_mixer
from ssmvision.layers.mixers.registry import MixerLike
from ssmvision.layers.norm import LayerNorm

__all__ = ["MixerBlock"]


class MixerBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), then x + drop_path(channel_mixer(norm(x))), on channels-last maps.

    A mixer "none" leaves its branch out.

    Args:
        dim: channels.
        spatial_dims: axes of the map.
        mixer: see `ssmvision.layers.mixers.resolve_mixer`; mixer_args: its options.
        channel_mixer: see `ssmvision.layers.channel_mixers`; channel_mixer_args: its options.
        drop_path: probability of dropping a sample's branch in training.

    Shape:
        (B, *grid, dim) -> the same.

    Raises:
        ValueError: an unknown mixer or option.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        mixer: MixerLike,
        channel_mixer: str = "mlp",
        mixer_args: Mapping[str, Any] | None = None,
        channel_mixer_args: Mapping[str, Any] | None = None,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        built = build_mixer(mixer, dim, spatial_dims, **(mixer_args or {}))
        self.mixer = None if resolve_mixer(mixer) is None else built
        self.norm1 = None if self.mixer is None else LayerNorm(dim)
        self.channel_mixer = build_channel_mixer(channel_mixer, dim, **(channel_mixer_args or {}))
        self.norm2 = None if self.channel_mixer is None else LayerNorm(dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.mixer is not None and self.norm1 is not None:
            x = x + self.drop_path(self.mixer(self.norm1(x)))
        if self.channel_mixer is not None and self.norm2 is not None:
            x = x + self.drop_path(self.channel_mixer(self.norm2(x)))
        return x
