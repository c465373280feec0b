"""Depthwise convolution of channels-last maps in one, two or three axes."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.depthwise_conv import depthwise_conv2d
from ssmvision.kernels.depthwise_conv.interface import MAX_SIDE

__all__ = ["DepthwiseConv"]

CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class DepthwiseConv(nn.Module):
    """Every channel with its own cubic kernel, zeros around the map, which keeps its size.

    Args:
        channels: C.
        spatial_dims: axes of the grid, 1 to 3.
        kernel_size: odd side of the kernels.
        activation: "silu" or "none", applied to the result.
        bias: give each channel a bias.
        factory: device and dtype of the parameters.

    Shape:
        (B, *grid, C) -> (B, *grid, C).

    Raises:
        ValueError: an even kernel, or not 1 to 3 axes.
    """

    def __init__(
        self,
        channels: int,
        spatial_dims: int,
        kernel_size: int,
        activation: Literal["silu", "none"] = "none",
        bias: bool = True,
        **factory: Any,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"a convolution of side {kernel_size} would shift the map; take an odd side")
        if spatial_dims not in CONVOLUTIONS:
            raise ValueError(f"spatial_dims={spatial_dims}: a map has 1 to 3 axes")
        self.activation: Literal["silu", "none"] = activation
        convolution = CONVOLUTIONS[spatial_dims]
        self.conv = convolution(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias, **factory
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; see the class for shapes."""
        if x.dim() == 4 and self.conv.kernel_size[0] <= MAX_SIDE:
            return depthwise_conv2d(x, self.conv.weight.squeeze(1), self.conv.bias, self.activation)
        mixed: Tensor = self.conv(x.movedim(-1, 1)).movedim(1, -1)
        return F.silu(mixed) if self.activation == "silu" else mixed
