"""Tiles without seams: equal to the whole image for what looks a halo far, smooth for what does not."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.recipes.fusion.tiling import fused_in_tiles, tile_starts

SIZES = [(64, 64), (65, 64), (150, 201), (63, 300), (129, 7), (1, 130)]


def images(size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.rand(2, 2, 1, *size, generator=generator, dtype=torch.float64)
    return a, b


def blur(a: Tensor, b: Tensor) -> Tensor:
    """Looks 8 pixels far, and knows the border of what it is given."""
    kernel = torch.ones(1, 2, 17, 17, dtype=a.dtype) / 289
    return F.conv2d(torch.cat((a, b), 1), kernel, padding=8)


@pytest.mark.parametrize("size", SIZES)
def test_tiled_is_untiled_within_the_reach_of_the_halo(size):
    a, b = images(size)
    torch.testing.assert_close(fused_in_tiles(blur, a, b, 64, 8, 16, 4), blur(a, b), atol=1e-14, rtol=0)


def test_a_halo_too_short_shows():
    a, b = images((150, 201))
    assert (fused_in_tiles(blur, a, b, 64, 2, 8, 4) - blur(a, b)).abs().max() > 1e-3


def test_what_differs_from_tile_to_tile_fades_over_the_ramp():
    calls = []

    def by_tile(a: Tensor, b: Tensor) -> Tensor:
        calls.append(a.shape)
        return torch.full_like(a, len(calls) % 2)  # as different as two tiles can be

    a, b = images((180, 200))
    fused = fused_in_tiles(by_tile, a, b, 96, 8, 32, 32)
    assert len(calls) > 4
    steps = torch.cat([fused.diff(dim=2).abs().flatten(), fused.diff(dim=3).abs().flatten()])
    assert 0 < steps.max() <= 2 / 32
    assert fused.max() - fused.min() == 1


@pytest.mark.parametrize(("tile", "halo", "ramp", "multiple"), [(64, 8, 8, 8), (64, 8, 16, 32), (40, 3, 5, 1)])
def test_tiles_cover_the_axis_share_the_overlap_and_keep_the_grid(tile, halo, ramp, multiple):
    overlap = 2 * halo + ramp
    for size in range(1, 400):
        starts = tile_starts(size, tile, overlap, multiple)
        assert starts[0] == 0
        assert starts[-1] + tile >= size
        assert all(start % multiple == 0 for start in starts)
        assert all(0 < b - a <= tile - overlap for a, b in pairwise(starts))


def test_tiles_too_small_are_refused():
    a, b = images((80, 80))
    with pytest.raises(ValueError, match=r"tile 40 is too small for halo 8, ramp 16 .*: it must be at least 64"):
        fused_in_tiles(blur, a, b, 40, 8, 16, 32)
