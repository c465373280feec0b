"""Launch settings of the selective scan's backends, apart from the code that runs them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "CHUNK",
    "CUDA_CHUNK",
    "ChunkedConfig",
    "CudaConfig",
    "backward_config",
    "chunked_config",
    "forward_config",
    "n_chunks",
    "n_saved",
]

# A training forward saves the state at the entry of every chunk; a backward recomputes everything else. At 64 tokens
# the saved states of N = 16 take a quarter of one fp32 activation; a GPU's backward keeps 16 steps on the chip.
CHUNK, CUDA_CHUNK = 64, 16


def n_chunks(positions: int, chunk: int = CHUNK) -> int:
    """Number of chunks for a grid of this many positions (symbolic sizes work too)."""
    return (positions + chunk - 1) // chunk


def n_saved(positions: int, device_type: str) -> int:
    """Saved states: one at the entry of every chunk and the last one, the same for all backends of a device.

    Never 1, which a compiler would treat as a special size and compile short sequences a second time for.
    """
    return n_chunks(positions, CUDA_CHUNK if device_type == "cuda" else CHUNK) + 1


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
        channels: neighbouring channels a thread of the forward owns.
        segment: steps walked by one warp (forward) or block (backward).
        segments: pieces of a route; more than one costs a pass over the inputs to find their entry states.
    """

    channels: int
    segment: int
    segments: int


# Warps that a multiprocessor holds at the kernels' register counts.
WARPS = 12


def forward_config(rows: int, channels: int, steps: int, pairs: bool, multiprocessors: int) -> CudaConfig:
    """Forward: a warp per 32 or 64 channels of a route; enough of them to keep the exponential units busy.

    Two channels a thread need fewer instructions; routes alone suffice where they nearly fill the GPU.

    Args:
        rows: batch x routes.
        channels: E.
        steps: of the longest route.
        pairs: whether two channels can be loaded at once.
        multiprocessors: of the device.
    """
    full = WARPS * multiprocessors
    one, two = rows * -(-channels // 32), rows * -(-channels // 64)
    if pairs and two >= 0.85 * full:
        return CudaConfig(2, max(steps, 1), 1)
    if one >= 0.7 * full:
        return CudaConfig(1, max(steps, 1), 1)
    per_thread = 2 if pairs and channels >= 64 else 1
    return CudaConfig(per_thread, *_segments(full / (two if per_thread == 2 else one), steps))


def backward_config(rows: int, channels: int, steps: int, multiprocessors: int) -> CudaConfig:
    """Backward: blocks of four warps and 64 channels, three on a multiprocessor."""
    blocks, full = rows * -(-channels // 64), 3 * multiprocessors
    if blocks >= 0.85 * full:
        return CudaConfig(2, max(-(-steps // CUDA_CHUNK), 1) * CUDA_CHUNK, 1)
    return CudaConfig(2, *_segments(2 * full / blocks, steps))


def _segments(wanted: float, steps: int) -> tuple[int, int]:
    """Steps, a multiple of a chunk, and number of about `wanted` pieces of a route, none below three chunks."""
    chunks = max(n_chunks(steps, CUDA_CHUNK), 1)
    pieces = max(min(chunks // 3, round(wanted)), 1)
    segment = -(-chunks // pieces) * CUDA_CHUNK
    return segment, max(-(-steps // segment), 1)
