"""Where class tokens sit in a token sequence: in the middle (Vim), in front, at both ends, or nowhere."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["ClassToken", "class_token_rows", "insert_class_tokens", "split_class_tokens"]

ClassToken = Literal["middle", "first", "double", "none"]


def class_token_rows(kind: ClassToken, patches: int) -> tuple[int, ...]:
    """Rows of the class tokens in a sequence of `patches` patch tokens plus them, ascending.

    Raises:
        ValueError: `kind` is not a known placement.
    """
    if kind not in get_args(ClassToken):
        raise ValueError(f"class_token={kind!r}: choose from {', '.join(get_args(ClassToken))}")
    rows = {"middle": (patches // 2,), "first": (0,), "double": (0, patches + 1), "none": ()}
    return rows[kind]


def insert_class_tokens(patches: Tensor, tokens: tuple[Tensor, ...], rows: tuple[int, ...]) -> Tensor:
    """Put each token (1 or B, 1, C) at its row of the resulting sequence.

    Args:
        patches: (B, N, C).
        tokens: one per row.
        rows: ascending rows of the result.

    Returns:
        (B, N + len(rows), C).
    """
    for row, token in zip(rows, tokens, strict=True):
        token = token.expand(patches.shape[0], -1, -1)
        patches = torch.cat([patches[:, :row], token, patches[:, row:]], dim=1)
    return patches


def split_class_tokens(tokens: Tensor, rows: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The inverse of `insert_class_tokens`.

    Args:
        tokens: (B, N + len(rows), C).
        rows: ascending rows of the class tokens.

    Returns:
        patch tokens (B, N, C) in order, and class tokens (B, len(rows), C).
    """
    if not rows:
        return tokens, tokens[:, :0]
    pieces = [tokens[:, before + 1 : after] for before, after in pairwise((-1, *rows, tokens.shape[1]))]
    return torch.cat(pieces, dim=1), torch.cat([tokens[:, row : row + 1] for row in rows], dim=1)
