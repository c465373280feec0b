"""What the backends take and return."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Grads", "NormArgs", "NormGrads", "keeps_hidden"]


def keeps_hidden(hidden: Tensor, residual: Tensor | None, residual_dtype: torch.dtype) -> bool:
    """Whether the new residual would be a copy of hidden; then it is not written."""
    return residual is None and hidden.dtype == residual_dtype


class NormArgs(NamedTuple):
    """Of the forward.

    Attributes:
        hidden: (..., C).
        residual: (..., C), or None.
        weight: (C,).
        bias: (C,) in weight's dtype, or None; centered only.
        centered: layer norm, not RMS norm.
        eps: added to the variance, or the mean square.
        out_dtype: of the normed tensor.
        residual_dtype: of the new residual, before it is normalised.
    """

    hidden: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor | None
    centered: bool
    eps: float
    out_dtype: torch.dtype
    residual_dtype: torch.dtype


class NormGrads(NamedTuple):
    """Of the backward.

    Attributes:
        total: (..., C), the new residual (hidden where the forward left it out).
        weight: (C,).
        stats: as the forward returned them.
        d_normed: (..., C), gradient of the normed sum.
        d_total: (..., C), gradient of the new residual, None for zero.
        hidden_dtype: of hidden.
        has_residual, has_bias, centered: of the forward.
    """

    total: Tensor
    weight: Tensor
    stats: Tensor
    d_normed: Tensor
    d_total: Tensor | None
    hidden_dtype: torch.dtype
    has_residual: bool
    has_bias: bool
    centered: bool

    @property
    def residual_apart(self) -> bool:
        """Whether the residual's gradient is not simply that of hidden."""
        return self.has_residual and self.hidden_dtype != self.total.dtype


class Grads(NamedTuple):
    """What the backward returns.

    Attributes:
        hidden: (..., C), gradient of hidden in its dtype.
        residual: (..., C) in the new residual's dtype; None where there is no residual or it would be a copy of the one
            of hidden.
        weight: (C,) in its dtype.
        bias: the same; None where there is none.
    """

    hidden: Tensor
    residual: Tensor | None
    weight: Tensor
    bias: Tensor | None
