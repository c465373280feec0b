"""How planes are dealt out to the warps of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

__all__ = [
    "LONGEST",
    "PlaneConfig",
    "backward_config",
    "backward_shared_bytes",
    "cut",
    "forward_config",
    "forward_shared_bytes",
]

LONGEST = 64  # beyond it the tiles of a plane do not fit into a warp's registers
TILE = 8
SETUP = 2  # images whose work the matrices of a warp take to build


@dataclass(frozen=True)
class PlaneConfig:
    """A launch.

    Attributes:
        images: planes that a warp has in work at once, so that small ones hide each other's latencies.
        warps: of a block.
        blocks: of a multiprocessor, which limits the registers.
        stages: how many times `images` planes of a warp have room in shared memory, to be read ahead.
    """

    images: int
    warps: int
    blocks: int
    stages: int = 2


def _tiles(grid: tuple[int, int]) -> tuple[int, int]:
    return -(-grid[0] // TILE), -(-grid[1] // TILE)


def forward_config(grid: tuple[int, int]) -> PlaneConfig:
    """By size; measured on an H200."""
    tiles = max(_tiles(grid))
    if tiles > 4:
        return PlaneConfig(images=1, warps=2, blocks=4)
    if tiles > 2:
        return PlaneConfig(images=1, warps=4, blocks=3)
    if tiles > 1:
        return PlaneConfig(images=1, warps=4, blocks=6)
    return PlaneConfig(images=4, warps=4, blocks=6)


def backward_config(grid: tuple[int, int]) -> PlaneConfig:
    """By size, as measured on an H200; a block is a pair of warps."""
    tiles = max(_tiles(grid))
    if tiles > 4:
        return PlaneConfig(images=1, warps=2, blocks=4)
    if tiles > 2:
        return PlaneConfig(images=1, warps=2, blocks=6)
    if tiles > 1:
        return PlaneConfig(images=1, warps=2, blocks=12)
    return PlaneConfig(images=4, warps=2, blocks=8)


def backward_shared_bytes(grid: tuple[int, int], config: PlaneConfig) -> int:
    """Dynamic shared memory of a block of csrc/plane_backward.cu."""
    rows, columns = _tiles(grid)
    plane, transposed = TILE * rows * 16 * (columns | 1), TILE * columns * 16 * (rows | 1)
    diagonals = sum(n + 2 * ((n + 1) // 2 - 1) for n in (rows, columns))
    return max(config.images * (2 * config.stages * plane + transposed), 512 * diagonals)


def forward_shared_bytes(grid: tuple[int, int], config: PlaneConfig) -> int:
    """The same of csrc/plane_forward.cu."""
    rows, columns = _tiles(grid)
    return config.warps * config.stages * config.images * TILE * rows * 16 * (columns | 1)


@lru_cache(maxsize=256)
def cut(batch: int, features: int, images: int, walkers: int) -> tuple[int, int]:
    """Chunks of the batch and images in each, so that the last of the walkers is done soonest.

    Args:
        batch, features: sizes of the maps.
        images: that a walker takes at once.
        walkers: that the device runs at once.
    """
    best, cost = (1, batch), float("inf")
    for steps in range(1, -(-batch // images) + 1):
        per = steps * images
        chunks = -(-batch // per)
        rounds = -(-chunks * features // walkers)
        if rounds * (per + SETUP) < cost:
            best, cost = (chunks, per), rounds * (per + SETUP)
    return best
