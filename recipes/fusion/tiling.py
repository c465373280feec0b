"""Large images through a network in tiles, without seams."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["fused_in_tiles", "tile_starts"]

Fuse = Callable[[Tensor, Tensor], Tensor]


def fused_in_tiles(fuse: Fuse, x1: Tensor, x2: Tensor, tile: int, halo: int, ramp: int, multiple: int = 1) -> Tensor:
    """Fuse tile by tile; every result is a weighted mean of the tiles that see the pixel well.

    A tile counts nothing within `halo` pixels of an edge that is not the image's, and its weight grows linearly over
    the `ramp` pixels after them. So a network that looks no further than `halo` gives what it gives for the whole
    image, up to rounding; and what a network knows only of a whole tile (its mean brightness, say) changes by at most
    1 / ramp of the difference between two tiles from one pixel to the next.

    Args:
        fuse: two images (B, 1, h, w) to one.
        x1, x2: (B, 1, H, W).
        tile: side of a tile in pixels; along an axis shorter than that, the whole image.
        halo: pixels at a tile's inner edges that are computed and thrown away.
        ramp: pixels of the transition between two tiles.
        multiple: tiles start at multiples of it, so that a network's grid of patches stays in place.

    Returns:
        (B, 1, H, W).

    Raises:
        ValueError: tiles are too small for halo and ramp.
    """
    if ramp < 1 or halo < 0 or multiple < 1 or tile - 2 * halo - ramp < multiple:
        raise ValueError(
            f"tile {tile} is too small for halo {halo}, ramp {ramp} and multiples of {multiple}: it must be at least "
            f"{2 * halo + ramp + multiple}, with a ramp of 1 or more"
        )
    height, width = x1.shape[2:]
    if height <= tile and width <= tile:
        return fuse(x1, x2)
    overlap = 2 * halo + ramp
    total, weights = torch.zeros_like(x1), torch.zeros(1, 1, height, width, dtype=x1.dtype, device=x1.device)
    for top in tile_starts(height, tile, overlap, multiple):
        rows = slice(top, min(top + tile, height))
        for left in tile_starts(width, tile, overlap, multiple):
            columns = slice(left, min(left + tile, width))
            weight = torch.outer(_weight(rows, height, halo, ramp), _weight(columns, width, halo, ramp)).to(x1)
            total[..., rows, columns] += fuse(x1[..., rows, columns], x2[..., rows, columns]) * weight
            weights[..., rows, columns] += weight
    return total / weights


def tile_starts(size: int, tile: int, overlap: int, multiple: int) -> list[int]:
    """First pixels of the tiles along an axis: multiples of `multiple`, at least `overlap` pixels shared, all covered.

    Only the last tile may be shorter.
    """
    if size <= tile:
        return [0]
    step, last = (tile - overlap) // multiple, -(-(size - tile) // multiple)
    steps = -(-last // step)
    # Evenly spread, so that no tile is needlessly seen twice.
    return [round(i * last / steps) * multiple for i in range(steps + 1)]


def _weight(span: slice, size: int, halo: int, ramp: int) -> Tensor:
    """Along one axis: 0 in the halo, rising to 1 over the ramp, and 1 to the image's own edges."""
    place = torch.arange(span.start, span.stop, dtype=torch.float64)
    weight = torch.ones_like(place)
    if span.start > 0:
        weight = torch.minimum(weight, (place - span.start - halo + 1) / ramp)
    if span.stop < size:
        weight = torch.minimum(weight, (span.stop - place - halo) / ramp)
    return weight.clamp(min=0)
