"""How the chunked SSD cuts a route. No torch."""

from __future__ import annotations

__all__ = ["CHUNK", "SPAN", "STEPS", "chunk_sizes"]

# Work within a chunk grows with its length, between chunks with their number; both balance near the state's width.
CHUNK = 64
# Up to so many chunks, states are carried by one step a chunk, which reads and writes each once.
STEPS = 16
# Of more, those that are carried by one matrix product.
SPAN = 64


def chunk_sizes(positions: int) -> tuple[int, int]:
    """Number and length of a route's chunks: as even as they can be, so that little of the last one is padding."""
    count = max(1, -(-positions // CHUNK))
    return count, max(1, -(-positions // count))
