"""Parts of VMamba around SS2D: the block, the stem and the layers between the stages, all channels-last.

Source: Liu et al., "VMamba" (arXiv 2401.10166), section 4.1 and figure 3, and the official code (MzeroMiko/VMamba),
whose parameter names these keep: modules without parameters hold the places that they have in its sequences.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ssmvision.kernels.add_norm import add_layer_norm
from ssmvision.layers.norm import LayerNorm
from ssmvision.layers.ss2d import SS2D

__all__ = [
    "ChannelsFirst",
    "ChannelsLast",
    "Downsample",
    "PatchMerging",
    "SS2DBlock",
    "Stem",
    "StreamNorm",
    "make_downsample",
    "make_stem",
]

Stem = Literal["overlap", "patch"]
Downsample = Literal["overlap", "patch", "merge"]


class ChannelsLast(nn.Module):
    """(B, C, H, W) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Move the channels."""
        return x.permute(0, 2, 3, 1)


class ChannelsFirst(nn.Module):
    """(B, H, W, C) -> (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Move the channels."""
        return x.permute(0, 3, 1, 2)


class StreamNorm(LayerNorm):
    """Norm whose result begins a residual stream: in the parameters' dtype, whatever autocast's is.

    Shape:
        (..., C) -> (..., C).
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis."""
        if x.is_cuda and self.weight is not None:
            return add_layer_norm(x, None, self.weight, self.bias, self.eps, self.weight.dtype)[0]
        return super().forward(x)


class SS2DBlock(nn.Module):
    """x + drop_path(SS2D(norm(x))), and the same with an MLP where there is one.

    Args:
        dim: channels.
        ss2d: further arguments of `SS2D`.
        mlp_ratio: width of the MLP's hidden layer / `dim`; 0 for no MLP.
        mlp_drop_rate: dropout after each of the MLP's layers.
        drop_path: probability of dropping a sample's branch in training.
        factory: device and dtype.

    Shape:
        (B, H, W, dim) -> (B, H, W, dim).
    """

    def __init__(
        self,
        dim: int,
        ss2d: dict[str, Any],
        mlp_ratio: float = 4.0,
        mlp_drop_rate: float = 0.0,
        drop_path: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, **factory)
        self.op = SS2D(dim, **ss2d, **factory)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2: LayerNorm | None = None
        self.mlp: nn.Module | None = None
        if mlp_ratio > 0:
            self.norm2 = LayerNorm(dim, **factory)
            self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=mlp_drop_rate, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions, then channels."""
        branch: Tensor = self.drop_path(self.op(self.norm(x)))
        if self.norm2 is not None and self.mlp is not None:
            normed, x = self.norm2.add(branch, x)
            branch = self.drop_path(self.mlp(normed))
        return x + branch


class PatchMerging(nn.Module):
    """Swin's downsampling: the four pixels of each 2 x 2 square side by side, normed and projected.

    Odd maps are padded with zeros at the bottom and the right.

    Args:
        dim, out_dim: channels before and after.
        factory: device and dtype.

    Shape:
        (B, H, W, dim) -> (B, ceil(H / 2), ceil(W / 2), out_dim).
    """

    def __init__(self, dim: int, out_dim: int, **factory: Any) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, out_dim, bias=False, **factory)
        self.norm = LayerNorm(4 * dim, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map; see the class."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
        # Down each square's columns, not along its rows: the order of the published weights.
        quarters = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        out: Tensor = self.reduction(self.norm(torch.cat(quarters, -1)))
        return out


def make_stem(kind: Stem, in_chans: int, dim: int, **factory: Any) -> nn.Sequential:
    """(B, in_chans, H, W) -> (B, H / 4, W / 4, dim).

    Args:
        kind: "overlap", two 3 x 3 convolutions of stride 2, maps rounded up; or "patch", one of 4 x 4 of stride 4,
            maps rounded down.
        in_chans, dim: channels before and after.
        factory: device and dtype.

    Raises:
        ValueError: no such kind.
    """
    if kind == "patch":
        conv = nn.Conv2d(in_chans, dim, 4, stride=4, **factory)
        return nn.Sequential(conv, ChannelsLast(), StreamNorm(dim, **factory))
    if kind != "overlap":
        raise ValueError(f"stem={kind!r}: choose from overlap, patch")
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride=2, padding=1, **factory),
        ChannelsLast(),
        LayerNorm(half, **factory),
        ChannelsFirst(),
        nn.GELU(),
        nn.Conv2d(half, dim, 3, stride=2, padding=1, **factory),
        ChannelsLast(),
        StreamNorm(dim, **factory),
    )


def make_downsample(kind: Downsample, dim: int, out_dim: int, **factory: Any) -> nn.Module:
    """(B, H, W, dim) -> (B, H / 2, W / 2, out_dim).

    Args:
        kind: "overlap", a 3 x 3 convolution of stride 2, maps rounded up; "patch", one of 2 x 2, maps rounded down; or
            "merge", `PatchMerging`.
        dim, out_dim: channels before and after.
        factory: device and dtype.

    Raises:
        ValueError: no such kind.
    """
    if kind == "merge":
        return PatchMerging(dim, out_dim, **factory)
    if kind not in ("overlap", "patch"):
        raise ValueError(f"downsample={kind!r}: choose from overlap, patch, merge")
    size, padding = (3, 1) if kind == "overlap" else (2, 0)
    conv = nn.Conv2d(dim, out_dim, size, stride=2, padding=padding, **factory)
    return nn.Sequential(ChannelsFirst(), conv, ChannelsLast(), StreamNorm(out_dim, **factory))
