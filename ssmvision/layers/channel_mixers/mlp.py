"""The perceptrons of timm's transformers as channel mixers."""

from __future__ import annotations

from timm.layers import Mlp, SwiGLU
from torch import nn

__all__ = ["glu", "mlp"]


def mlp(dim: int, *, ratio: float = 4.0, dropout: float = 0.0) -> nn.Module:
    """W2 gelu(W1 x) (Dosovitskiy et al., arXiv 2010.11929, section 3.1).

    Args:
        dim: channels.
        ratio: width of the hidden layer / `dim`.
        dropout: after either layer.
    """
    return Mlp(dim, int(dim * ratio), drop=dropout)


def glu(dim: int, *, ratio: float = 8 / 3, dropout: float = 0.0) -> nn.Module:
    """W3 (silu(W1 x) * W2 x) (Shazeer, "GLU variants improve transformer", arXiv 2002.05202, eq. 6).

    Args:
        dim: channels.
        ratio: width of the hidden layer / `dim`; 8 / 3 has an MLP's parameters at ratio 4.
        dropout: after the gate and at the end.
    """
    return SwiGLU(dim, int(dim * ratio), drop=dropout)
