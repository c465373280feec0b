"""Blocks of FusionMamba, on channels-last maps: DVSS in encoder and decoder, DFFM between the two modalities.

Source: Xie et al., "FusionMamba: Dynamic Feature Enhancement for Multimodal Image Fusion with Mamba" (arXiv
2404.09498), in the form of the published code, whose parameter names are kept.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from ssmvision.kernels.channel_means import channel_means
from ssmvision.kernels.channel_scale import scale_channels
from ssmvision.layers.fusion_attention import BiAttention, EfficientChannelAttention
from ssmvision.layers.fusion_conv import LearnableDescriptiveConv
from ssmvision.layers.fusion_scan import ESS2D, CrossModalScan, Gate
from ssmvision.layers.norm import LayerNorm

__all__ = ["DFEM", "DFFM", "DVSSBlock"]


class DVSSBlock(nn.Module):
    """Dynamic visual state-space block: scan and local texture, each with channel attention, then an MLP.

    Args:
        dim: C, at least 8.
        d_state: states per channel of the scan.
        drop_path: rate of stochastic depth.
        mlp_ratio: hidden width of the MLP / C.
        eps: of the two norms (1e-6 in published blocks that are built alone).
        base_mask: see `LearnableDescriptiveConv`.

    Shape:
        (B, H, W, C) -> the same.
    """

    def __init__(
        self,
        dim: int,
        d_state: int = 16,
        drop_path: float = 0.0,
        mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        base_mask: bool = False,
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(dim, eps=eps)
        self.op = ESS2D(dim, d_state)
        self.conv_branch = LearnableDescriptiveConv(dim, dim, base_mask)
        self.self_attention_cross_channel = EfficientChannelAttention()
        self.se = BiAttention(dim)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(mlp_ratio * dim))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Mix positions, then channels."""
        x, mixed = self.branch(x, None)
        return x + mixed

    def branch(self, x: Tensor, pending: Tensor | None) -> tuple[Tensor, Tensor]:
        """The block on a stream of residuals whose last addition is still to be made, so that norms make it.

        Args:
            x: (B, H, W, C), the stream.
            pending: (B, H, W, C), to be added to it first; None for nothing.

        Returns:
            the stream and what is to be added to it, each (B, H, W, C).
        """
        normed, x = (self.norm(x), x) if pending is None else self.norm.add(pending, x)
        scanned = self.op(normed)
        plain, level = channel_means(scanned, self.se.norm.eps).unbind(1)
        attention = self.self_attention_cross_channel.weights(plain)
        texture = self.conv_branch(scale_channels(scanned, weights=1 + attention))
        weights = self.se.weights(level, channel_means(texture, self.se.norm.eps)[:, 1])
        # Dropping a path by its weights spares passes over the map.
        mixed = scale_channels(scanned, texture, weights=self.drop_path(weights))
        normed, x = self.norm2.add(mixed, x)
        return x, self.drop_path(self.mlp(normed))


class _UnusedProjection(nn.Module):
    """The 1x1 convolution that published checkpoints hold and the published network never calls."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lastconv = nn.Conv2d(dim, dim // 2, 1)


class DFEM(nn.Module):
    """Dynamic feature enhancement: each modality gets its texture and a share of the sum of both.

    The share of a channel is sigmoid(mean(x1 - x2)) for the first modality, the rest for the second.

    Args:
        dim: C.
        official: keep the published checkpoints' constant and unused tensors.

    Shape:
        two maps (B, H, W, C) -> two maps (B, H, W, C).
    """

    def __init__(self, dim: int, official: bool = False) -> None:
        super().__init__()
        self.texture_enhance1 = LearnableDescriptiveConv(dim, dim, official)
        self.texture_enhance2 = LearnableDescriptiveConv(dim, dim, official)
        if official:
            self.Diff_enhance = _UnusedProjection(dim)

    def forward(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Enhance both maps."""
        both, difference = x1 + x2, (x1 - x2).mean((1, 2), keepdim=True)
        out1 = torch.addcmul(self.texture_enhance1(x1) + x1, torch.sigmoid(difference), both)
        out2 = torch.addcmul(self.texture_enhance2(x2) + x2, torch.sigmoid(-difference), both)
        return out1, out2


class DFFM(nn.Module):
    """Dynamic feature fusion: DFEM, norms, CMFM and channel attention, added to the sum of both maps.

    Args:
        dim: C.
        d_state: states per channel of the scan.
        gate: see `CrossModalScan`.
        eps: of the two norms.
        official: keep the published checkpoints' constant and unused tensors.

    Shape:
        two maps (B, H, W, C) -> (B, H, W, C).
    """

    def __init__(
        self, dim: int, d_state: int = 16, gate: Gate = "own", eps: float = 1e-5, official: bool = False
    ) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(dim, eps=eps)
        self.ln_2 = LayerNorm(dim, eps=eps)
        self.Cross_layer = DFEM(dim, official)
        self.self_attention_cross = CrossModalScan(dim, d_state, gate=gate, unused_gate=official)
        # The published name notwithstanding, this is a channel attention.
        self.self_attention_cross_spatial = EfficientChannelAttention()

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fuse two maps."""
        enhanced1, enhanced2 = self.Cross_layer(x1, x2)
        fused = self.self_attention_cross(self.ln_1(enhanced1), self.ln_2(enhanced2))
        attention = self.self_attention_cross_spatial.weights(channel_means(fused)[:, 0])
        return x1 + x2 + scale_channels(fused, weights=1 + attention)
