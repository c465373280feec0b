"""Softmax attention inside windows of the grid, with learned relative positions."""

from __future__ import annotations

from itertools import accumulate
from math import prod

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ssmvision.layers.mixers.attention import attention_layer
from ssmvision.layers.mixers.heads import head_width

__all__ = ["WindowAttention"]

# Swin's window (Liu et al., arXiv 2103.14030), and about as many positions in a line and in a cube.
WINDOWS = {1: 64, 2: 7, 3: 4}


class WindowAttention(nn.Module):
    """Multi-head attention between the positions of a window, softmax(Q K^T / sqrt(P) + b) V.

    b is a learned bias for each head and relative position. A map of any size is cut into windows from its first
    corner or, shifted, from half a window inside; what is left at the edges are smaller windows, as the parts of
    Swin's rolled and masked map are. An axis that fits a single window is not shifted.

    Source: Liu et al., "Swin Transformer" (arXiv 2103.14030), sections 3.2 and eq. 4.

    Args:
        dim, spatial_dims: channels and axes of the map.
        window: side of a window; None for 64 in one axis, 7 in two and 4 in three.
        shift: start the windows half a window inside.
        head_dim: channels of a head; None for the widest divisor of `dim` up to 32.
        qkv_bias: give queries, keys and values a bias.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: `head_dim` does not divide `dim`, a window below 1, or not 1 to 3 axes.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        window: int | None = None,
        shift: bool = False,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if spatial_dims not in WINDOWS:
            raise ValueError(f"spatial_dims={spatial_dims}: a map has 1 to 3 axes")
        self.window = WINDOWS[spatial_dims] if window is None else window
        if self.window < 1:
            raise ValueError(f"window={window}: a window has at least one position")
        self.shift = shift
        self.heads = dim // head_width(dim, head_dim, widest=32)
        self.attention = attention_layer(dim, self.heads, device, dtype, qkv_bias=qkv_bias)
        offsets = (2 * self.window - 1) ** spatial_dims
        self.position_bias = nn.Parameter(torch.empty(self.heads, offsets, device=device, dtype=dtype))
        trunc_normal_(self.position_bias, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Parameters that Swin's authors exclude from weight decay: the relative positions' biases."""
        return {"position_bias"}

    def _bias(self, sides: tuple[int, ...]) -> Tensor:
        """(H, w, w) biases between the w positions of a window."""
        span = 2 * self.window - 1
        strides = [1, *accumulate([span] * (len(sides) - 1), lambda a, b: a * b)][::-1]
        index = torch.zeros(*sides, *sides, dtype=torch.long, device=self.position_bias.device)
        for axis, (side, stride) in enumerate(zip(sides, strides, strict=True)):
            place = torch.arange(side, device=index.device)
            offset = (place[:, None] - place + self.window - 1) * stride
            shape = [1] * (2 * len(sides))
            shape[axis] = shape[axis + len(sides)] = side
            index = index + offset.view(shape)
        size = prod(sides)
        return self.position_bias[:, index.view(size, size)]

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> (B, *grid, dim)."""
        batch, *grid, _ = x.shape
        sides = tuple(min(self.window, size) for size in grid)
        before = [side - side // 2 if self.shift and size > side else 0 for size, side in zip(grid, sides, strict=True)]
        after = [-(size + b) % side for size, b, side in zip(grid, before, sides, strict=True)]
        padding = [amount for pair in zip(reversed(before), reversed(after), strict=True) for amount in pair]
        mask = self._bias(sides).unsqueeze(0).to(x.dtype)
        if any(padding):
            x = nn.functional.pad(x, (0, 0, *padding))
            inside = nn.functional.pad(x.new_ones(1, *grid, 1, dtype=torch.bool), (0, 0, *padding))
            keys = _cut(inside, sides).squeeze(-1)
            mask = mask.masked_fill(~keys[:, None, None], float("-inf")).repeat(batch, 1, 1, 1)
        y = _join(self.attention(_cut(x, sides), attn_mask=mask), sides, x.shape)
        crop = tuple(slice(b, b + size) for b, size in zip(before, grid, strict=True))
        return y[(slice(None), *crop)]


def _split_axes(shape: tuple[int, ...], sides: tuple[int, ...]) -> list[int]:
    return [part for size, side in zip(shape, sides, strict=True) for part in (size // side, side)]


def _cut(x: Tensor, sides: tuple[int, ...]) -> Tensor:
    """(B, *grid, C) -> (B windows, w, C)."""
    axes = range(len(sides))
    split = x.view(x.shape[0], *_split_axes(tuple(x.shape[1:-1]), sides), x.shape[-1])
    order = (0, *(1 + 2 * a for a in axes), *(2 + 2 * a for a in axes), 1 + 2 * len(sides))
    return split.permute(order).reshape(-1, prod(sides), x.shape[-1])


def _join(windows: Tensor, sides: tuple[int, ...], shape: torch.Size) -> Tensor:
    """The inverse of `_cut` for a map of this shape."""
    axes = len(sides)
    counts = [size // side for size, side in zip(shape[1:-1], sides, strict=True)]
    split = windows.view(shape[0], *counts, *sides, shape[-1])
    order = (0, *(part for a in range(axes) for part in (1 + a, 1 + axes + a)), 1 + 2 * axes)
    return split.permute(order).reshape(shape)
