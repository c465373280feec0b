"""Launch settings of the fused norm's CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RowConfig", "backward_blocks", "row_config"]

LANES = 32
MAX_WARPS = 16
# Accesses per lane and row before a row is given to more warps; the backward keeps five rows' worth in registers.
FORWARD_PACKS, BACKWARD_PACKS = 8, 4
FORWARD_THREADS, BACKWARD_THREADS = 128, 256  # per block, more only where one row needs them
BACKWARD_THREADS_PER_PROCESSOR = 512


@dataclass(frozen=True)
class RowConfig:
    """How rows lie on threads.

    Attributes:
        warps: per row.
        packs: accesses per lane and row.
        channels: per access, V.
        rows: side by side in a block.
    """

    warps: int
    packs: int
    channels: int
    rows: int

    @property
    def threads(self) -> int:
        """Per block."""
        return LANES * self.warps * self.rows


def row_config(channels: int, aligned: int, *, backward: bool = False) -> RowConfig:
    """Rows on warps, as few for one row as keep it in registers.

    Args:
        channels: C.
        aligned: channels per access, a divisor of C.
        backward: of which kernel.
    """
    most, threads = (BACKWARD_PACKS, BACKWARD_THREADS) if backward else (FORWARD_PACKS, FORWARD_THREADS)
    accesses = -(-channels // aligned)
    warps = 1
    while warps < MAX_WARPS and accesses > LANES * most * warps:
        warps *= 2
    packs = -(-accesses // (LANES * warps))
    return RowConfig(warps, packs, aligned, max(threads // (LANES * warps), 1))


def backward_blocks(rows: int, config: RowConfig, processors: int) -> int:
    """Blocks of the backward: each walks many rows, so that few parts of the weight's gradient are left to add up."""
    resident = processors * max(BACKWARD_THREADS_PER_PROCESSOR // config.threads, 1)
    return min(-(-rows // config.rows), resident)
