"""Norms that compute in the input's precision and return the parameters' precision.

A residual stream kept in float32 meets low-precision weights here: the statistics must not be rounded first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.add_norm import add_rms_norm

__all__ = ["LayerNorm", "RMSNorm"]


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang and Sennrich, arXiv 1910.07467, eq. 4).

    CUDA tensors go through one fused kernel, which computes in at least float32 and has no second derivative.

    Shape:
        (..., C) in any floating dtype -> (..., C) in the dtype of `weight`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; see the class for shape and precision."""
        weight: Tensor = self.weight
        if self._fuses(x):
            return add_rms_norm(x, None, weight, self._epsilon(x.dtype), weight.dtype, x.dtype)[0]
        return F.rms_norm(x, self.normalized_shape, weight.to(x.dtype), self.eps).to(weight.dtype)

    def add(self, hidden: Tensor, residual: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Add to the residual stream and normalise the sum, for CUDA tensors in one kernel.

        Args:
            hidden: (..., C).
            residual: (..., C), or None where the stream starts with hidden.
            dtype: of the new stream.

        Returns:
            The normed stream (..., C) and the new stream (..., C). The former has the dtype of `weight`; for CUDA
            tensors under autocast, autocast's dtype, which the matrix product that follows would cast it to.
        """
        if self._fuses(hidden):
            return add_rms_norm(hidden, residual, self.weight, self._epsilon(dtype), residual_dtype=dtype)
        total = (hidden if residual is None else residual + hidden).to(dtype)
        return self(total), total

    def _fuses(self, x: Tensor) -> bool:
        return x.is_cuda and self.weight.dim() == 1

    def _epsilon(self, dtype: torch.dtype) -> float:
        return torch.finfo(dtype).eps if self.eps is None else self.eps


class LayerNorm(nn.LayerNorm):
    """Layer norm over the last axis, with the precision rule of this module.

    Shape:
        (..., C) in any floating dtype -> (..., C) in the dtype of `weight`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; see the class for shape and precision."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)
