"""Launch settings of the 3D convolution, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

__all__ = ["LAGS", "LONGEST", "VECTOR", "TileConfig", "longest_axis", "padded", "parts_of", "tile_config"]

# Longest axis whose matrix fits beside a plane in a multiprocessor's shared memory, if that is large.
LONGEST = 128
# Shared memory of a block from which on that is so, and with which tiles are fetched further ahead.
LARGE_BYTES, HUGE_BYTES = 160 << 10, 224 << 10
# Lags of a program that sums diagonals.
LAGS = 16
# Numbers that are read at once where rows allow it.
VECTOR = 8
# What building a program's matrices costs, in planes or tiles.
SETUP = 1


@dataclass(frozen=True)
class TileConfig:
    """How a kernel is compiled.

    Attributes:
        columns: positions of (y, x) in a tile along z; of no use to `planes`.
        warps: of a program.
        stages: tiles in flight.
        blocks: programs that share a multiprocessor.
    """

    columns: int
    warps: int
    stages: int
    blocks: int


def padded(length: int) -> int:
    """The power of two, 16 at least, in which an axis is computed."""
    return max(16, 1 << (length - 1).bit_length())


def longest_axis(granted: int) -> int:
    """The longest axis whose kernels fit into the shared memory that a block may have.

    Args:
        granted: its bytes.
    """
    return LONGEST if granted >= LARGE_BYTES else LONGEST // 2


@lru_cache(maxsize=64)
def tile_config(kernel: str, size: int, element_bytes: int, granted: int) -> TileConfig:
    """Settings for a kernel.

    Args:
        kernel: its name.
        size: the longest of its padded axes.
        element_bytes: of an input's and a result's number.
        granted: bytes of shared memory that a block may have.
    """
    backward, along_z = kernel.endswith("backward"), kernel.startswith("columns")
    fewer = element_bytes > 2 and along_z and backward
    if size <= LONGEST // 2:
        return TileConfig(64, 4, 2 if fewer else 3, 2 if backward else 3)
    if fewer or granted < HUGE_BYTES or kernel == "planes_backward":
        return TileConfig(64, 8, 2, 1)
    return TileConfig(128 if kernel == "columns" and element_bytes <= 2 else 64, 8, 3, 1)


@lru_cache(maxsize=256)
def parts_of(features: int, items: int, slots: int) -> int:
    """Programs that share a channel's items so that the whole ends soonest.

    Args:
        features: channels.
        items: planes or tiles of each.
        slots: programs that run at once.
    """

    def cost(parts: int) -> tuple[int, int]:
        waves = -(-features * parts // slots)
        return waves * (-(-items // parts) + SETUP), parts

    return min(range(1, min(items, 4 * slots) + 1), key=cost)
