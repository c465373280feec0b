"""Launch settings of the selective scan's backends, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CHUNK", "ChunkedConfig", "chunked_config", "n_chunks"]

# A training forward saves the state at the entry of every chunk; a backward recomputes everything else. At 64 tokens
# the saved states of N = 16 take a quarter of one fp32 activation.
CHUNK = 64


def n_chunks(positions: int) -> int:
    """Number of chunks, and of saved entry states, for a grid of this many positions (symbolic sizes work too)."""
    return (positions + CHUNK - 1) // CHUNK


@dataclass(frozen=True)
class ChunkedConfig:
    """How many state elements (rows x N x E) the PyTorch backend advances in one operator call.

    Attributes:
        min_elements: with fewer, several chunks are scanned side by side and their carries fixed up afterwards,
            because the cost of a call would outweigh its arithmetic.
        max_elements: with more, the batch is walked in groups, so that a tile stays in the cache (CPU) or in a
            bounded part of the memory (GPU).
    """

    min_elements: int
    max_elements: int


def chunked_config(device_type: str) -> ChunkedConfig:
    """Settings by device; the CPU's were measured on 2 cores of an AVX-512 server processor."""
    if device_type == "cpu":
        return ChunkedConfig(min_elements=4096, max_elements=16384)
    return ChunkedConfig(min_elements=1 << 20, max_elements=1 << 22)
