"""A plain depthwise convolution, the mixer to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssmvision.layers.depthwise import DepthwiseConv

__all__ = ["DepthwiseMixer"]

# ConvNeXt's side, and the largest of MedNeXt (Roy et al., arXiv 2303.09975), where a cube of 7 costs 343 taps.
SIDES = {1: 7, 2: 7, 3: 5}


class DepthwiseMixer(nn.Module):
    """Depthwise convolution and a pointwise projection: y = W (k * x) + b.

    Source: Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), section 2.5, for the convolution.

    Args:
        dim, spatial_dims: channels and axes of the map.
        kernel_size: odd side; None for 7, in three axes 5.
        device, dtype: of the parameters.

    Shape:
        (B, *grid, dim) -> (B, *grid, dim).

    Raises:
        ValueError: an even side, or not 1 to 3 axes.
    """

    def __init__(
        self,
        dim: int,
        spatial_dims: int,
        *,
        kernel_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        side = SIDES.get(spatial_dims, 1) if kernel_size is None else kernel_size
        self.conv = DepthwiseConv(dim, spatial_dims, side, device=device, dtype=dtype)
        self.proj = nn.Linear(dim, dim, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *grid, dim) -> (B, *grid, dim)."""
        out: Tensor = self.proj(self.conv(x))
        return out
