"""Launch settings of the selective scan's backends, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHUNK",
    "ChunkedConfig",
    "CudaConfig",
    "backward_config",
    "chunked_config",
    "forward_config",
    "n_chunks",
    "n_saved",
]

# A training forward saves the state at the entry of every chunk; a backward recomputes everything else. At 64 tokens
# the saved states of N = 16 take a quarter of one fp32 activation.
CHUNK = 64


def n_chunks(positions: int) -> int:
    """Number of chunks for a grid of this many positions (symbolic sizes work too)."""
    return (positions + CHUNK - 1) // CHUNK


def n_saved(positions: int) -> int:
    """Saved states: one at the entry of every chunk and the last one.

    Never 1, which a compiler would treat as a special size and compile short sequences a second time for.
    """
    return n_chunks(positions) + 1


@dataclass(frozen=True)
class ChunkedConfig:
    """How many state elements (rows x N x E) the PyTorch backend advances in one operator call.

    Attributes:
        steps: of a chunk, at least `CHUNK`.
        serial_elements: from here on a call's arithmetic outweighs its overhead, so chunks follow each other.
        parallel_elements: below that, chunks are scanned side by side until a call reaches this many, and their
            carries are fixed up afterwards.
        max_elements: with more, the batch is walked in groups, so that a tile stays in the cache (CPU) or in a
            bounded part of the memory (GPU).
    """

    steps: int
    serial_elements: int
    parallel_elements: int
    max_elements: int


def chunked_config(device_type: str) -> ChunkedConfig:
    """Settings by device; the CPU's were measured on 2 cores of an AVX-512 server processor."""
    if device_type == "cpu":
        return ChunkedConfig(steps=128, serial_elements=4096, parallel_elements=65536, max_elements=16384)
    return ChunkedConfig(steps=64, serial_elements=1 << 20, parallel_elements=1 << 20, max_elements=1 << 22)


@dataclass(frozen=True)
class CudaConfig:
    """How a CUDA pass is cut.

    Attributes:
        threads: per block of the forward.
        channels: neighbouring channels a thread of the forward owns, where pairs can be loaded.
        segment: steps walked by one block, a multiple of `CHUNK`.
        segments: blocks along a route; more than one costs a pass over the inputs to find their entry states.
    """

    threads: int
    channels: int
    segment: int
    segments: int


def forward_config(rows: int, channels: int, steps: int) -> CudaConfig:
    """Forward: enough warps to keep the exponential units busy, from routes alone where they suffice.

    Args:
        rows: batch x routes.
        channels: E.
        steps: of the longest route.
    """
    warps = rows * -(-channels // 32)
    per_thread = 2 if warps >= 2112 and channels >= 64 else 1
    threads = 64 if channels > 32 * per_thread else 32
    return CudaConfig(threads, per_thread, *_segments(warps, steps, enough=1024, wanted=2112))


def backward_config(rows: int, channels: int, steps: int) -> CudaConfig:
    """Backward: blocks of four warps and 32 channels, three on a multiprocessor."""
    warps = rows * -(-channels // 32) * 4
    return CudaConfig(128, 2, *_segments(warps, steps, enough=1024, wanted=3168))


def _segments(warps: int, steps: int, enough: int, wanted: int) -> tuple[int, int]:
    chunks = max(n_chunks(steps), 1)
    pieces = 1 if warps >= enough else min(chunks, -(-wanted // warps))
    segment = -(-chunks // pieces) * CHUNK
    return segment, max(-(-steps // segment), 1)
