"""Vim's block: add, norm, mixer, with the residual stream carried beside the mixer's output."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ssmvision.layers.mamba import MambaMixer
from ssmvision.layers.norm import RMSNorm

__all__ = ["ResidualMambaBlock"]


class ResidualMambaBlock(nn.Module):
    """residual += hidden; hidden = drop_path(mixer(norm(residual))).

    The sum is left to the next block, so the stream after a block is `residual + hidden`. Dropping at the output
    makes the official code's rates, shifted by one block because it drops at the input, the usual linear rule.

    Args:
        dim: width of the tokens.
        norm: over the last axis; a `ssmvision.layers.norm.RMSNorm` is fused with the addition on CUDA.
        mixer_args: arguments of `MambaMixer`.
        drop_path: probability of dropping a sample's mixer output in training.
        residual_in_fp32: keep the residual in at least float32.

    Shape:
        hidden (B, L, dim) and residual (B, L, dim), None before the first block -> the same two.
    """

    def __init__(
        self,
        dim: int,
        norm: nn.Module,
        mixer_args: dict[str, Any],
        drop_path: float = 0.0,
        residual_in_fp32: bool = True,
    ) -> None:
        super().__init__()
        self.mixer = MambaMixer(dim, **mixer_args)
        self.norm = norm
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.residual_in_fp32 = residual_in_fp32

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One step of both streams; see the class for shapes."""
        dtype = hidden.dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)
        if self.residual_in_fp32:
            dtype = torch.promote_types(dtype, torch.float32)
        if isinstance(self.norm, RMSNorm):
            normed, residual = self.norm.add(hidden, residual, dtype)
        else:
            residual = (hidden if residual is None else residual + hidden).to(dtype)
            normed = self.norm(residual)
        return self.drop_path(self.mixer(normed)), residual
