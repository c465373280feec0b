"""Resampling of learned position embeddings whose class row need not come first."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ssmvision.layers.class_token import ClassToken, class_token_rows, insert_class_tokens, split_class_tokens

__all__ = ["PosEmbedRule", "resample_pos_embed"]

PosEmbedRule = Literal["class_aware", "official"]
Grid = tuple[int, int]


def resample_pos_embed(
    pos_embed: Tensor,
    old_grid: Grid,
    new_grid: Grid,
    class_token: ClassToken = "middle",
    rule: PosEmbedRule = "class_aware",
) -> Tensor:
    """Move a position embedding to another patch grid (bicubic, not antialiased, as Vim's fine-tuning does).

    Args:
        pos_embed: (1, h * w + T, C) with T class rows.
        old_grid: (h, w) of the embedding.
        new_grid: (h', w') wanted.
        class_token: placement of the class rows.
        rule: "class_aware" takes the class rows out where they are and puts them back where they belong on the new
            grid; "official" is Vim's published rule, which takes the first T rows for class rows wherever they sit
            and so shifts part of a middle-token embedding by one patch (needed to repeat its stride-8 start).

    Returns:
        (1, h' * w' + T, C) in the input's dtype; the input itself where the grids agree.

    Raises:
        ValueError: the embedding does not have h * w + T rows, or `rule` is unknown.
    """
    if rule not in ("class_aware", "official"):
        raise ValueError(f"rule={rule!r}: choose from class_aware, official")
    old_rows = class_token_rows(class_token, old_grid[0] * old_grid[1])
    expected = old_grid[0] * old_grid[1] + len(old_rows)
    if pos_embed.shape[1] != expected:
        raise ValueError(
            f"position embedding has {pos_embed.shape[1]} rows, a {old_grid[0]}x{old_grid[1]} grid with "
            f"{len(old_rows)} class token(s) needs {expected}"
        )
    # An open size of a compiler is resampled even where it agrees, which changes nothing, so that it need not ask.
    if all(statically_known_true(old == new) for old, new in zip(old_grid, new_grid, strict=True)):
        return pos_embed
    new_rows = class_token_rows(class_token, new_grid[0] * new_grid[1])
    if rule == "official":
        old_rows = new_rows = tuple(range(len(old_rows)))
    patches, tokens = split_class_tokens(pos_embed, old_rows)
    dtype = torch.promote_types(pos_embed.dtype, torch.float32)
    image = patches.to(dtype).unflatten(1, old_grid).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new_grid, mode="bicubic", align_corners=False)
    patches = image.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return insert_class_tokens(patches, tuple(t.unsqueeze(1) for t in tokens.unbind(1)), new_rows)
