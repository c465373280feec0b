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
    "takes_block",
]

TILE = 8
LONGEST = 128  # beyond it a strip of a plane does not fit into a warp's registers
LONGEST_OF_WARP = 64  # the same for a whole plane
SETUP = 2  # images whose work the matrices of a warp take to build


@dataclass(frozen=True)
class PlaneConfig:
    """A launch.

    Attributes:
        images: planes that are in work at once, so that small ones hide each other's latencies.
        warps: of a block.
        teams: of a block: warps that have a feature and images of their own, or one for all.
        blocks: of a multiprocessor, which limits the registers.
        stages: how many times `images` planes of a team have room in shared memory, to be read ahead.
    """

    images: int
    warps: int
    teams: int
    blocks: int
    stages: int = 2


def _tiles(grid: tuple[int, int]) -> tuple[int, int]:
    return -(-grid[0] // TILE), -(-grid[1] // TILE)


def takes_block(grid: tuple[int, int]) -> bool:
    """Whether a plane is worked on by a block, a warp a strip of 16 rows, and not by one or two warps."""
    return max(grid) > LONGEST_OF_WARP


def forward_config(grid: tuple[int, int]) -> PlaneConfig:
    """By size; measured on an H200."""
    tiles = max(_tiles(grid))
    if takes_block(grid):
        return PlaneConfig(images=1, warps=(tiles + 1) // 2, teams=1, blocks=1 if tiles > 12 else 2)
    if tiles > 4:
        return PlaneConfig(images=1, warps=2, teams=2, blocks=4)
    if tiles > 2:
        return PlaneConfig(images=1, warps=4, teams=4, blocks=3)
    if tiles > 1:
        return PlaneConfig(images=1, warps=4, teams=4, blocks=6)
    return PlaneConfig(images=4, warps=4, teams=4, blocks=6)


def backward_config(grid: tuple[int, int]) -> PlaneConfig:
    """By size, as measured on an H200."""
    tiles = max(_tiles(grid))
    if takes_block(grid):
        return PlaneConfig(images=1, warps=(tiles + 1) // 2, teams=1, blocks=1)
    if tiles > 4:
        return PlaneConfig(images=1, warps=2, teams=1, blocks=4)
    if tiles > 2:
        return PlaneConfig(images=1, warps=2, teams=1, blocks=6)
    if tiles > 1:
        return PlaneConfig(images=2, warps=2, teams=1, blocks=10)
    return PlaneConfig(images=4, warps=2, teams=1, blocks=12)


def _plane_bytes(rows: int, columns: int) -> int:
    """A plane of tiles in shared memory, rows an odd multiple of 16 bytes apart."""
    return TILE * rows * 16 * (columns | 1)


def _table_bytes(tiles: int) -> int:
    """The tiles of a Toeplitz matrix, two a block diagonal."""
    return (2 * tiles - 1) * 256


def forward_shared_bytes(grid: tuple[int, int], config: PlaneConfig) -> int:
    """Dynamic shared memory of a block of csrc/plane_forward.cu or plane_block_forward.cu."""
    rows, columns = _tiles(grid)
    slots = config.teams * config.stages * config.images * _plane_bytes(rows, columns)
    return slots + (_table_bytes(columns) if takes_block(grid) else 0)


def backward_shared_bytes(grid: tuple[int, int], config: PlaneConfig) -> int:
    """The same of csrc/plane_backward.cu or plane_block_backward.cu."""
    rows, columns = _tiles(grid)
    slots = config.images * (2 * config.stages * _plane_bytes(rows, columns) + _plane_bytes(columns, rows))
    if takes_block(grid):
        sums = (n * ((n + 1) // 2) for n in (rows, columns))
        return max(slots + _table_bytes(rows) + _table_bytes(columns), 512 * max(sums))
    return max(slots, 512 * sum(n + 2 * ((n + 1) // 2 - 1) for n in (rows, columns)))


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
