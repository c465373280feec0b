"""Norms that compute in the input's precision and return the parameters' precision.

A residual stream kept in float32 meets low-precision weights here: the statistics must not be rounded first.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LayerNorm", "RMSNorm"]


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, arXiv 1910.07467, eq. 4).

    Shape:
        (..., C) in any floating dtype -> (..., C) in the dtype of `weight`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; see the class for shape and precision."""
        weight: Tensor = self.weight
        return F.rms_norm(x, self.normalized_shape, weight.to(x.dtype), self.eps).to(weight.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, with the precision rule of this module.

    Shape:
        (..., C) in any floating dtype -> (..., C) in the dtype of `weight`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; see the class for shape and precision."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)
