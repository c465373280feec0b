"""Channel attentions of FusionMamba, on channels-last maps.

Sources: Wang et al., "ECA-Net" (arXiv 1910.03151); Xie et al., "FusionMamba" (arXiv 2404.09498).
Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.channel_means import channel_means
from ssmvision.kernels.channel_scale import scale_channels

__all__ = ["BiAttention", "EfficientChannelAttention"]


class EfficientChannelAttention(nn.Module):
    """x * sigmoid(conv(mean over the map)), a convolution along the channel axis.

    Args:
        taps: of the convolution, odd.

    Shape:
        (B, H, W, C) -> the same.
    """

    def __init__(self, taps: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=False)

    def weights(self, means: Tensor) -> Tensor:
        """Of the channels (B, 1, C) from their means over the map (B, C)."""
        return torch.sigmoid(self.conv(means.to(self.conv.weight.dtype).unsqueeze(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels."""
        return scale_channels(x, weights=self.weights(channel_means(x)[:, 0]))


class BiAttention(nn.Module):
    """x * sigmoid(MLP(mean over the map of LayerNorm(x))): the channel branch, all that the published network uses.

    Args:
        dim: C.
        reduction: the hidden width is C // reduction.

    Shape:
        (B, H, W, C) -> the same.

    Raises:
        ValueError: fewer channels than `reduction`.
    """

    def __init__(self, dim: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = dim // reduction
        if hidden < 1:
            raise ValueError(f"dim={dim} leaves no hidden channel: it must be at least reduction={reduction}")
        self.norm = nn.LayerNorm(dim)
        self.global_reduce = nn.Linear(dim, hidden)
        self.channel_select = nn.Linear(hidden, dim)

    @torch.no_grad()
    def fold_(self) -> None:
        """Multiply the norm's weights into the first layer, for good: afterwards this cannot train."""
        if not self.norm.elementwise_affine:
            return
        first = self.global_reduce
        bias = first.bias + first.weight @ self.norm.bias
        self.global_reduce = nn.Linear(first.in_features, first.out_features, device="meta")
        self.global_reduce.weight = nn.Parameter(first.weight * self.norm.weight, requires_grad=False)
        self.global_reduce.bias = nn.Parameter(bias, requires_grad=False)
        self.norm = nn.LayerNorm(first.in_features, self.norm.eps, elementwise_affine=False)

    def weights(self, *means: Tensor) -> Tensor:
        """Of the channels of several maps, (B, maps, C), from each one's means (B, C) normed without weights."""
        pooled = torch.stack(means, 1)
        if self.norm.elementwise_affine:
            pooled = torch.addcmul(self.norm.bias, pooled, self.norm.weight)
        hidden = F.gelu(self.global_reduce(pooled.to(self.global_reduce.weight.dtype)))
        return torch.sigmoid(self.channel_select(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Weigh the channels."""
        return scale_channels(x, weights=self.weights(channel_means(x, self.norm.eps)[:, 1]))
