"""Norms that compute in the input's precision and return the parameters' precision.

A residual stream kept in float32 meets low-precision weights here: the statistics must not be rounded first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.add_norm import add_layer_norm, add_rms_norm

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
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (Ba et al., arXiv 1607.06450, eq. 4).

    CUDA tensors go through one fused kernel, which computes in at least float32 and has no second derivative.

    Shape:
        (..., C) in any floating dtype -> (..., C) in the dtype of `weight`; for CUDA tensors under autocast in
        autocast's dtype, which the matrix product that follows would cast it to.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; see the class for shape and precision."""
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if weight is None:
            return F.layer_norm(x, self.normalized_shape, None, None, self.eps)
        if x.is_cuda and weight.dim() == 1:
            return add_layer_norm(x, None, weight, bias, self.eps)[0]
        bias = None if bias is None else bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight.to(x.dtype), bias, self.eps).to(weight.dtype)

    def add(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Add to the residual stream and normalise the sum, for CUDA tensors in one kernel.

        Args:
            hidden, residual: (..., C).

        Returns:
            The normed stream (..., C), in the dtype that `forward` gives, and the new stream (..., C).
        """
        if hidden.is_cuda and self.weight is not None and self.weight.dim() == 1:
            return add_layer_norm(hidden, residual, self.weight, self.bias, self.eps)
        total = residual + hidden
        return self(total), total
