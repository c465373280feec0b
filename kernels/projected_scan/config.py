"""Launch settings of the projected scan's CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

__all__ = ["Pass", "Size", "backward_pass", "blocks_of_8", "forward_pass", "images_per_block", "shared_bytes"]

TILE = 16  # channels of a block
SEGMENTS = 8  # of a warp
MOST_WARPS, BARRIER_BYTES = 8, 8  # of a block, and of each one's barrier in shared memory
ROOM = 160  # floats of a warp's exchange of carries, for each state twice
# Largest blocks, such that the registers of a segment's steps fit: 168 and 255 a thread. The forward of a long rank
# takes as many as the backward.
FORWARD_THREADS, BACKWARD_THREADS = 384, 256
# Warps of a block from so many segments of a route on, as measured on an H200 at VMamba's sizes: short chains of warps
# and the first-level cache that small blocks leave are worth more than full occupancy.
FORWARD_WARPS, BACKWARD_WARPS = ((224, 8), (56, 4), (14, 2), (1, 1)), ((224, 8), (14, 2), (1, 1))
# A block of several images loads a route's parameters and adds up its sums once for all: a start and an end of a route
# cost about as much as so many rounds.
ROUTE_ROUNDS = 2.0
MOST_IMAGES = 8
MOST_KEPT = 8  # rounds of which links between warps are kept, so that most routes need no block barrier on the way
RESERVED_BYTES = 1024  # of a multiprocessor's shared memory, for each block


class Size(NamedTuple):
    """What a cut depends on.

    Attributes:
        slots: of an image's map in shared memory.
        segments: of a route, and `steps` of each.
        rank, states: R and N.
        half: whether inputs have 16 bits.
    """

    slots: int
    segments: int
    steps: int
    rank: int
    states: int
    half: bool


@dataclass(frozen=True)
class Pass:
    """How a pass over a route is cut.

    Attributes:
        threads: largest block that the kernel is compiled for.
        warps: of a block.
        rounds: in which a route is walked.
        kept: rounds of which the links between warps are kept at once, a power of two.
    """

    threads: int
    warps: int
    rounds: int
    kept: int

    @property
    def apart(self) -> int:
        """Rounds from one block barrier of a walk to the next, a power of two: none where no link is overwritten."""
        return self.kept if self.kept >= self.rounds else self.kept // 2


def blocks_of_8(size: Size) -> int:
    """Blocks of 8 that a token's projections take."""
    return -(-(size.rank + 2 * size.states) // 8)


def shared_bytes(size: Size, backward: bool, cut: Pass, images: int = 1) -> int:
    """Dynamic shared memory of a block; csrc/ lays it out."""
    blocks = blocks_of_8(size)
    room = size.states * 2 * ROOM
    if backward:
        room = max(room, TILE * (size.states + 1), -(-size.rank // 16) * 256 if size.half else 0)
    links = cut.kept * cut.warps * size.states * TILE * 4 + MOST_WARPS * BARRIER_BYTES
    total = images * size.slots * TILE * 4 + links + cut.warps * room * 4
    if blocks > 2:
        total += blocks * 64 * (8 if size.half else 16)
        total += -(-size.rank // 8) * 64 * 8 if backward else 0
    return total


def _fitting(size: Size, threads: int, limit: int, backward: bool) -> Pass | None:
    """As many warps as suit the route's length, or as fit."""
    table = BACKWARD_WARPS if backward else FORWARD_WARPS
    wanted = next(warps for segments, warps in table if size.segments >= segments)
    for warps in range(wanted, 0, -1):
        rounds = -(-size.segments // (warps * SEGMENTS))
        kept = 1 << (min(rounds, MOST_KEPT) - 1).bit_length()
        while kept:
            cut = Pass(threads, warps, rounds, kept)
            if cut.apart and shared_bytes(size, backward, cut) <= limit:
                return cut
            kept //= 2
    return None


@lru_cache(maxsize=256)
def forward_pass(size: Size, limit: int) -> Pass | None:
    """The forward's cut, or None where an image does not fit into a block's shared memory of `limit` bytes."""
    return _fitting(size, FORWARD_THREADS if blocks_of_8(size) <= 2 else BACKWARD_THREADS, limit, False)


@lru_cache(maxsize=256)
def backward_pass(size: Size, limit: int) -> Pass | None:
    """The backward's cut, or None as for the forward."""
    return _fitting(size, BACKWARD_THREADS, limit, True)


def images_per_block(
    size: Size, cut: Pass, limit: int, *, backward: bool, batch: int, tiles: int, processors: int
) -> int:
    """Images that a block takes one after the other, so that the device is soonest done with all.

    Args:
        size, cut, backward: the pass.
        limit: shared memory that a block may have, in bytes.
        batch, tiles: images, and channel tiles of each.
        processors: multiprocessors of the device.
    """

    def cost(images: int) -> float:
        resident = (limit + RESERVED_BYTES) // (shared_bytes(size, backward, cut, images) + RESERVED_BYTES)
        together = processors * max(min(resident, cut.threads // 32 // cut.warps), 1)
        waves = -(-(-(-batch // images) * tiles) // together)
        return waves * (images * cut.rounds + ROUTE_ROUNDS)

    fitting = (n for n in range(1, MOST_IMAGES + 1) if shared_bytes(size, backward, cut, n) <= limit)
    return min(fitting, key=cost)
