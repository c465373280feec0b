"""Launch settings of the branch kernels, apart from the code that runs them. Tuned on one H200, see BENCHMARKS.md."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MAX_CHANNELS", "TileConfig", "norm_backward_tile", "norm_tile", "sum_tile"]

# A tile holds all channels of a few positions in registers.
MAX_CHANNELS = 2048
NORM_ELEMENTS, NORM_BACKWARD_ELEMENTS = 8192, 4096
# Between narrower and wider tiles, which are fastest with 8 warps; measured, not understood.
SLOW_WITH_EIGHT_WARPS = 512
SUM_PARTS = 528


@dataclass(frozen=True)
class TileConfig:
    """One program's part of a map.

    Attributes:
        channels, positions: of the tile, powers of 2.
        warps: of the program.
        parts: programs that share a sum over the map, at most; fixed, so that the order of the sum is.
    """

    channels: int
    positions: int
    warps: int
    parts: int = 0


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def norm_tile(channels: int) -> TileConfig:
    """Of the norm's forward."""
    wide = _power(channels)
    return TileConfig(wide, max(NORM_ELEMENTS // wide, 8), 4)


def norm_backward_tile(channels: int) -> TileConfig:
    """Of the norm's backward."""
    wide = _power(channels)
    positions = max(NORM_BACKWARD_ELEMENTS // wide, 8)
    if wide == SLOW_WITH_EIGHT_WARPS:
        return TileConfig(wide, positions, 4, 1056)
    # A thread's part of the tile and of two sums must stay in its registers.
    return TileConfig(wide, positions, 16 if wide > 1024 else 8, 264)


def sum_tile() -> TileConfig:
    """Of the scaled sum, both ways: it transposes, and needs no more channels at once than a cache line holds."""
    return TileConfig(32, 64, 4, SUM_PARTS)
