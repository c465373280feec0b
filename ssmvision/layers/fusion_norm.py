"""LayerNorm on a stream of residuals that may be wider than the weights."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["StreamNorm"]


class StreamNorm(nn.LayerNorm):
    """`nn.LayerNorm` whose result has its weights' dtype, so that the layer behind it computes in that dtype.

    Shape:
        (..., C) of any floating dtype -> (..., C).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Norm the last axis."""
        return super().forward(input.to(self.weight.dtype))
