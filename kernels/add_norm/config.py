"""Launch settings of the fused norm's CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RowConfig", "backward_blocks", "row_config"]

FEWEST_LANES, WARP, MOST_LANES = 8, 32, 512
# Accesses per lane and row before a row is given to more lanes of its warp, which short rows share; then to more warps.
# The backward keeps six rows' worth in registers.
PACKS_IN_A_WARP = 4
FORWARD_PACKS, BACKWARD_PACKS = 8, 4
FORWARD_THREADS, BACKWARD_THREADS = 128, 256  # per block, more only where one row needs them
BACKWARD_THREADS_PER_PROCESSOR = 512


@dataclass(frozen=True)
class RowConfig:
    """How rows lie on threads.

    Attributes:
        lanes: per row: 8, 16, or whole warps.
        packs: accesses per lane and row.
        channels: per access, V.
        rows: side by side in a block.
    """

    lanes: int
    packs: int
    channels: int
    rows: int

    @property
    def threads(self) -> int:
        """Per block."""
        return self.lanes * self.rows


def row_config(channels: int, aligned: int, *, backward: bool = False) -> RowConfig:
    """Rows on lanes, as few for one row as keep it in registers.

    Args:
        channels: C.
        aligned: channels per access, a divisor of C.
        backward: of which kernel.
    """
    most, threads = (BACKWARD_PACKS, BACKWARD_THREADS) if backward else (FORWARD_PACKS, FORWARD_THREADS)
    accesses = -(-channels // aligned)
    lanes = FEWEST_LANES
    while lanes < WARP and accesses > lanes * PACKS_IN_A_WARP:
        lanes *= 2
    while WARP <= lanes < MOST_LANES and accesses > lanes * most:
        lanes *= 2
    return RowConfig(lanes, -(-accesses // lanes), aligned, max(threads // lanes, 1))


def backward_blocks(rows: int, config: RowConfig, processors: int) -> int:
    """Blocks of the backward: each walks many rows, so that few parts of the weight's gradient are left to add up."""
    resident = processors * max(BACKWARD_THREADS_PER_PROCESSOR // config.threads, 1)
    return min(-(-rows // config.rows), resident)
