"""Launch settings of the channel means' CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

__all__ = ["MAX_PACKS", "WARPS", "parts", "rows_at_once"]

WARPS = 4  # of a block
BLOCKS_PER_PROCESSOR = 8
MAX_PARTS = 512  # of an image, which a second launch adds up
MAX_PACKS = 16  # accesses per lane and row, which stay in registers


def rows_at_once(packs: int) -> int:
    """Rows that a warp reads before it computes, as many as hide the memory's latency and fit into registers."""
    return max(4 // packs, 1)


def parts(batch: int, rows: int, at_once: int, processors: int) -> int:
    """Blocks that share an image."""
    wanted = -(-BLOCKS_PER_PROCESSOR * processors // batch)
    return max(min(-(-rows // (WARPS * at_once)), wanted, MAX_PARTS), 1)
