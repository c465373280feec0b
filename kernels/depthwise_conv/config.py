"""Launch settings of the depthwise convolution's CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["THREADS", "Cut", "cut"]

COLUMNS, GROUPS, UNITS = 2, 8, 16  # as csrc/common.cuh has them
THREADS = GROUPS * UNITS
WAVE_THREADS = 512  # of a multiprocessor; with fewer, strips are shortened
SHORTEST_STRIP = 7  # rows; every strip reads its neighbours' rows at its ends again


@dataclass(frozen=True)
class Cut:
    """How a map is cut.

    Attributes:
        units: pairs of columns, of all images.
        blocks: units / those of a block, channel tiles, strips.
        strip: rows that a thread walks.
    """

    units: int
    blocks: tuple[int, int, int]
    strip: int


def cut(batch: int, height: int, width: int, groups: int, processors: int) -> Cut:
    """Strips as long as leaves every multiprocessor enough threads.

    Args:
        batch, height, width: B, H and W.
        groups: threads side by side along the channels.
        processors: multiprocessors of the device.
    """
    units = batch * -(-width // COLUMNS)
    stacks, tiles = -(-units // UNITS), -(-groups // GROUPS)
    wanted = -(-processors * WAVE_THREADS // (stacks * tiles * THREADS))
    strips = max(min(wanted, height // SHORTEST_STRIP), 1)
    strip = -(-height // strips)
    return Cut(units, (stacks, tiles, -(-height // strip)), strip)
