"""Launch settings of the sub-grids' CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

__all__ = ["COLUMNS", "MAX_PACKS", "columns_per_thread"]

# Columns of a line that a thread of the convolution may walk: more of them share a read of the weights.
COLUMNS = (16, 8, 4, 2)
THREADS_PER_PROCESSOR = 1024
MAX_PACKS = 16  # accesses of a lane of the norm, which keeps a position's channels in registers


def columns_per_thread(lines: int, columns: int, processors: int) -> int:
    """As many as leave every multiprocessor enough threads.

    Args:
        lines: threads that would walk whole lines.
        columns: of a line.
        processors: of the device.
    """
    for count in COLUMNS[:-1]:
        if count <= columns and lines * -(-columns // count) >= THREADS_PER_PROCESSOR * processors:
            return count
    return COLUMNS[-1]
