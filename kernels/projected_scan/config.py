"""Launch settings of the projected scan's CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ssmvision.kernels.projected_scan.args import saved_steps

__all__ = ["Pass", "backward_pass", "forward_pass", "shared_bytes"]

TILE = 16  # channels of a block
SEGMENTS = 8  # of a warp
RESERVED_BYTES = 1024  # of a multiprocessor's shared memory, for each block
# Largest blocks, such that the registers of a segment's steps fit: 168 and 255 a thread.
FORWARD_THREADS, BACKWARD_THREADS = 384, 256


@dataclass(frozen=True)
class Pass:
    """How a pass over a route is cut.

    Attributes:
        threads: largest block that the kernel is compiled for.
        steps: of a segment, walked by one lane.
        warps: of a block.
        rounds: in which a route is walked.
        resident: blocks that a multiprocessor holds at once.
    """

    threads: int
    steps: int
    warps: int
    rounds: int
    resident: int


def _blocks_of_8(rank: int, states: int) -> int:
    return -(-(rank + 2 * states) // 8)


def shared_bytes(positions: int, rank: int, states: int, half: bool, backward: bool, warps: int) -> int:
    """Dynamic shared memory of a block; csrc/ lays it out."""
    blocks = _blocks_of_8(rank, states)
    size = (positions + 1) // 2 * 2 * TILE * 4
    if blocks > 2:
        size += blocks * 64 * (8 if half else 16)
        size += -(-rank // 8) * 64 * 8 if backward else 0
    if backward:
        size += warps * 4 * max(TILE * (states + 1), -(-rank // 16) * 256 if half else 0)
    return size


def _fitting(
    positions: int, threads: int, steps: tuple[int, ...], limit: int, size: tuple[int, int, bool, bool]
) -> Pass | None:
    """The cut that wastes the fewest lanes, among equals that of the fewest rounds, then of the smallest blocks."""
    best: tuple[tuple[float, int, int], Pass] | None = None
    for s in steps:
        for warps in range(1, threads // 32 + 1):
            shared = shared_bytes(positions, *size, warps) + threads // 32 * 64 * size[1] + RESERVED_BYTES
            resident = min(threads // 32 // warps, (limit + RESERVED_BYTES) // shared)
            if resident == 0:
                continue
            rounds = -(-positions // (warps * SEGMENTS * s))
            cut = Pass(threads, s, warps, rounds, resident)
            # A round's carries cost about as much as three more steps.
            used = positions / (rounds * warps * SEGMENTS * (s + 3)) * (resident * warps * 32 / threads)
            score = (round(used, 3), -rounds, -warps)
            if best is None or score > best[0]:
                best = score, cut
    return None if best is None else best[1]


@lru_cache(maxsize=256)
def forward_pass(positions: int, rank: int, states: int, half: bool, limit: int) -> Pass | None:
    """The forward's cut, or None where an image does not fit into a block's shared memory of `limit` bytes."""
    steps = {1: (11, 9, 7, 5), 2: (5, 3), 4: (3,)}[states]
    return _fitting(positions, FORWARD_THREADS, steps, limit, (rank, states, half, False))


@lru_cache(maxsize=256)
def backward_pass(positions: int, rank: int, states: int, half: bool, limit: int) -> Pass | None:
    """The backward's cut: its segments begin at the saved states."""
    return _fitting(positions, BACKWARD_THREADS, (saved_steps(states),), limit, (rank, states, half, True))
