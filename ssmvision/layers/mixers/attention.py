"""Softmax attention between all positions, the reference for every mixer."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from ssmvision.layers.mixers.heads import head_width

__all__ = ["GlobalAttention", "attention_layer"]


def attention_layer(
    dim: int, heads: int, device: torch.device | str | None, dtype: torch.dtype | None, **options: Any
) -> Attention:
    """The attention of timm with its options, which older versions cannot build on a device or in a dtype."""
    with torch.device(torch.get_default_device() if device is None else device):
        layer = Attention(dim, heads, **options)
    return layer if dtype is None else layer.to(dtype)


class GlobalAttention(nn.Module):
    """Multi-head attention of every position to every other, softmax(Q K^T / sqrt(P)) V, with timm's layer.

    It knows no positions: without an embedding or a convolution before it, permuting the input permutes the output.
    Memory is linear where PyTorch has a fused kernel, time quadratic in the positions.

    Source: Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), eq. 1; query and key norms: Dehghani et al.,
    arXiv 2302.05442.

    Args:
        dim, spatial_dims: channels and axes of the map.
        head_dim: channels of a head; None for the widest divisor of `dim` up to 64.
        qkv_bias: give queries, keys and values a bias.
        qk_norm: norm queries and keys of each head.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: `head_dim` does not divide `dim`.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        head_dim: int | None = None,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        heads = dim // head_width(dim, head_dim)
        options = {"qkv_bias": qkv_bias, "qk_norm": qk_norm, "norm_layer": nn.LayerNorm}
        self.attention = attention_layer(dim, heads, device, dtype, **options)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> (B, *grid, dim)."""
        out: Tensor = self.attention(x.flatten(1, -2))
        return out.view(x.shape)
