"""Learnable descriptive convolution (LDC), on channels-last maps.

Source: Huang et al., "Learnable Descriptive Convolutional Network for Face Anti-Spoofing" (BMVC 2022), in the form of
Xie et al., "FusionMamba" (arXiv 2404.09498) and its published checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LearnableDescriptiveConv"]


class LearnableDescriptiveConv(nn.Module):
    """A dense 3x3 convolution whose centre taps are scaled by 1 - theta m[o, i] sum(W[o, i]).

    Args:
        in_channels: channels before.
        out_channels: channels after.
        base_mask: keep the ones that scale the nine taps in the published code as a frozen parameter, as published
            checkpoints have it. They double the weights and change nothing.

    Shape:
        (B, H, W, in_channels) -> (B, H, W, out_channels), zero padded.
    """

    base_mask: nn.Parameter | None
    learnable_mask: nn.Parameter | None
    learnable_theta: nn.Parameter | None

    def __init__(self, in_channels: int, out_channels: int, base_mask: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.learnable_mask = nn.Parameter(torch.ones(out_channels, in_channels))
        self.learnable_theta = nn.Parameter(torch.full((1,), 0.5))
        ones = nn.Parameter(torch.ones(out_channels, in_channels, 3, 3), requires_grad=False) if base_mask else None
        self.register_parameter("base_mask", ones)

    def effective_weight(self) -> Tensor:
        """The kernel (out_channels, in_channels, 3, 3) that the convolution applies, channels last in memory."""
        weight = self.conv.weight
        if self.learnable_mask is None or self.learnable_theta is None:
            return weight
        centre = weight[:, :, 1, 1] * weight.sum((2, 3)) * self.learnable_theta * self.learnable_mask
        # As the map is; otherwise every convolution on a GPU would reorder its weights.
        taps = (weight if self.base_mask is None else weight * self.base_mask).clone(memory_format=torch.channels_last)
        taps[:, :, 1, 1] -= centre
        return taps

    @torch.no_grad()
    def fold_(self) -> None:
        """Keep only the effective kernel, for good: afterwards the layer cannot train."""
        self.conv.weight = nn.Parameter(self.effective_weight(), requires_grad=False)
        self.learnable_mask = self.learnable_theta = self.base_mask = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; see the class for shapes. The result has the weights' dtype."""
        weight = self.effective_weight()
        out = F.conv2d(x.to(weight.dtype).permute(0, 3, 1, 2), weight, padding=1)
        return out.permute(0, 2, 3, 1)
