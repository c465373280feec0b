"""Launch settings of the instance norm, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NormConfig", "norm_config"]

BLOCK, WARPS = 2048, 4
# Programs of all channels together: several waves for the largest GPUs, and few enough parts to be added up again.
PROGRAMS, MAX_SPLITS = 4096, 64


@dataclass(frozen=True)
class NormConfig:
    """How a map is cut; it depends on shapes only, so that two runs are bitwise equal.

    Attributes:
        block: voxels a program has in registers.
        chunk: voxels of a program, a multiple of a block.
        splits: programs of a channel, a power of two of which the last ones may be idle.
        warps: of a program.
    """

    block: int
    chunk: int
    splits: int
    warps: int


def norm_config(rows: int, voxels: int) -> NormConfig:
    """For `rows` (batch x channels) channels of `voxels` each."""
    blocks = -(-voxels // BLOCK)
    wanted = max(min(PROGRAMS // rows, MAX_SPLITS, blocks), 1)
    splits = 1 << (wanted.bit_length() - 1)
    return NormConfig(BLOCK, -(-blocks // splits) * BLOCK, splits, WARPS)
