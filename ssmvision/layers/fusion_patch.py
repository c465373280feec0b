"""Patch merging and expanding of hierarchical networks, on channels-last maps.

Sources: Liu et al., "Swin Transformer" (arXiv 2103.14030), section 3.1, for merging; Cao et al., "Swin-Unet"
(arXiv 2105.05537) for expanding. Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from torch import Tensor, nn

from ssmvision.layers.norm import LayerNorm

__all__ = ["PatchExpanding", "PatchMerging"]


class PatchMerging(nn.Module):
    """2x2 pixels side by side, column by column, then LayerNorm and a linear layer to twice the channels.

    Shape:
        (B, H, W, C) -> (B, H // 2, W // 2, 2 C), in the input's dtype; an odd last row or column is not seen.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Halve the map."""
        height, width = x.shape[1] // 2, x.shape[2] // 2
        whole = x[:, : 2 * height, : 2 * width].unflatten(2, (width, 2)).unflatten(1, (height, 2))
        reduced: Tensor = self.reduction(self.norm(whole.permute(0, 1, 3, 4, 2, 5).flatten(3)))
        return reduced.to(x.dtype)


class PatchExpanding(nn.Module):
    """A linear layer to `scale` times the channels, which become `scale` x `scale` pixels, then LayerNorm.

    Args:
        dim: channels before, divisible by `scale`.
        scale: of height and width.

    Shape:
        (B, H, W, dim) -> (B, scale H, scale W, dim / scale), in the input's dtype.

    Raises:
        ValueError: `scale` does not divide `dim`.
    """

    def __init__(self, dim: int, scale: int = 2) -> None:
        super().__init__()
        if dim % scale:
            raise ValueError(f"dim={dim} must be divisible by scale={scale}")
        self.scale = scale
        self.expand = nn.Linear(dim, scale * dim, bias=False)
        self.norm = LayerNorm(dim // scale)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge the map."""
        pixels = self.expand(x.to(self.expand.weight.dtype)).unflatten(3, (self.scale, self.scale, -1))
        normed: Tensor = self.norm(pixels.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))
        return normed.to(x.dtype)
