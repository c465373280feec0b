"""The block of the backbones that take any mixer: a token mixer and a channel mixer, each in its residual branch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ssmvision.layers.channel_mixers import build_channel_mixer
from ssmvision.layers.channel_mixers.mlp import mlp
from ssmvision.layers.mixers import build_mixer, resolve_mixer
from ssmvision.layers.mixers.registry import MixerLike
from ssmvision.layers.norm import LayerNorm

__all__ = ["MixerBlock", "ParallelMixers", "SharedAttention"]

Options = Mapping[str, Any]


class ParallelMixers(nn.Module):
    """y = W (b1 o norm(first(x)) + b2 o norm(second(x))) (Hymba: Dong et al., arXiv 2411.13676, eq. 3).

    The published code halves the sum, which is the same with another W, and has norms without means.

    Args:
        dim: channels.
        first, second: modules (B, *grid, dim) -> the same.

    Shape:
        (B, *grid, dim) -> the same.
    """

    def __init__(self, dim: int, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second
        # The norms' weights are b1 and b2.
        self.norm1, self.norm2 = LayerNorm(dim, bias=False), LayerNorm(dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = self.proj(self.norm1(self.first(x)) + self.norm2(self.second(x)))
        return out


class SharedAttention(nn.Module):
    """mlp(norm(W attention(norm([x, x0])))), x0 the map that entered the stage.

    The block that Zamba (Glorioso et al., arXiv 2405.16712, section 2) has once, for many places: it works on
    channels twice as many, and has no residual of its own. Here its attention has a linear layer of its own before W,
    and the usual scale 1 / sqrt(P), where the published one (transformers, `ZambaAttention`) has 1 / sqrt(P / 2).

    Args:
        dim: channels.
        spatial_dims: axes of the map.
        attention_args: options of the mixer "attention".

    Shape:
        two maps (B, *grid, dim) -> one.
    """

    def __init__(self, dim: int, spatial_dims: int, attention_args: Options) -> None:
        super().__init__()
        self.norm1 = LayerNorm(2 * dim)
        self.attention = build_mixer("attention", 2 * dim, spatial_dims, **attention_args)
        self.proj = nn.Linear(2 * dim, dim)
        self.norm2 = LayerNorm(dim)
        self.mlp = mlp(dim)

    def forward(self, x: Tensor, start: Tensor) -> Tensor:
        """See the class."""
        mixed = self.attention(self.norm1(torch.cat((x, start), -1)))
        out: Tensor = self.mlp(self.norm2(self.proj(mixed)))
        return out


class MixerBlock(nn.Module):
    """x + drop_path(mixer(norm(x))), then x + drop_path(channel_mixer(norm(x))), on channels-last maps.

    A mixer "none" leaves its branch out.

    Args:
        dim: channels.
        spatial_dims: axes of the map.
        mixer: see `ssmvision.layers.mixers.resolve_mixer`; mixer_args: its options.
        channel_mixer: see `ssmvision.layers.channel_mixers`; channel_mixer_args: its options.
        beside: a second token mixer, as in `ParallelMixers`; beside_args: its options.
        takes_shared: also take the output of a `SharedAttention`, which through a linear layer of the block's own is
            added to what the token mixer sees.
        drop_path: probability of dropping a sample's branch in training.

    Shape:
        (B, *grid, dim) -> the same.

    Raises:
        ValueError: an unknown mixer or option, or no token mixer where the layout needs one.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        mixer: MixerLike,
        channel_mixer: str = "mlp",
        mixer_args: Options | None = None,
        channel_mixer_args: Options | None = None,
        *,
        beside: str | None = None,
        beside_args: Options | None = None,
        takes_shared: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        built = build_mixer(mixer, dim, spatial_dims, **(mixer_args or {}))
        self.mixer = None if resolve_mixer(mixer) is None else built
        if self.mixer is None and (beside is not None or takes_shared):
            raise ValueError("mixer='none' leaves nothing for this layout to add attention to; use layout='uniform'")
        if beside is not None:
            self.mixer = ParallelMixers(dim, build_mixer(beside, dim, spatial_dims, **(beside_args or {})), built)
        self.norm1 = None if self.mixer is None else LayerNorm(dim)
        self.from_shared = nn.Linear(dim, dim) if takes_shared else None
        self.channel_mixer = build_channel_mixer(channel_mixer, dim, **(channel_mixer_args or {}))
        self.norm2 = None if self.channel_mixer is None else LayerNorm(dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, shared: Tensor | None = None) -> Tensor:
        """See the class; `shared` is the output (B, *grid, dim) of the shared attention."""
        if self.mixer is not None and self.norm1 is not None:
            seen = x if shared is None or self.from_shared is None else x + self.from_shared(shared)
            x = x + self.drop_path(self.mixer(self.norm1(seen)))
        if self.channel_mixer is not None and self.norm2 is not None:
            x = x + self.drop_path(self.channel_mixer(self.norm2(x)))
        return x
