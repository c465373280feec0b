"""Launch settings of the causal convolution's CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BACKWARD_WARPS", "THREADS", "Strips", "backward_strips", "channels_per_thread", "forward_strip"]

THREADS = 128  # per block of the forward
BACKWARD_WARPS = 4  # per block of the backward at most, MAX_WARPS in csrc/backward.cu
# A thread holds its channels' taps in registers. The forward needs many warps, the backward reads more at a time.
FORWARD_TAPS, BACKWARD_TAPS = 16, 32


def channels_per_thread(routes: int, taps: int, aligned: int, *, backward: bool = False) -> int:
    """Neighbouring channels that a thread owns: 4, 2 or 1.

    Args:
        routes, taps: K and W.
        aligned: largest number of channels by which every row's start and every tensor's address can be divided.
        backward: of which kernel.
    """
    most = BACKWARD_TAPS if backward else FORWARD_TAPS
    return next((v for v in (4, 2) if v <= aligned and v * routes * taps <= most), 1)


def forward_strip(rows: int, steps: int, processors: int) -> int:
    """Tokens that a thread of the forward walks: as many as keep every thread that fits on the device busy.

    Args:
        rows: threads side by side, batch x E / channels.
        steps: tokens to be walked.
        processors: multiprocessors of the device.
    """
    strips = max(processors * 1024 // rows, 1)
    return max(-(-steps // strips), 4)


class Strips(NamedTuple):
    """Tokens that a warp of the backward walks, and warps that add up their sums in a block."""

    length: int
    warps: int


def backward_strips(columns: int, tokens: int, processors: int) -> Strips:
    """Strips of the backward; each walks taps - 1 tokens of its neighbours too, so they are not shorter than 8.

    Args:
        columns: warps side by side, batch x tiles of channels.
        tokens: L.
        processors: multiprocessors of the device.
    """
    count = max(min(processors * 12 // columns, tokens // 8), 1)
    warps = count if count <= BACKWARD_WARPS else max((4, 3), key=lambda warps: count // warps * warps)
    count = count // warps * warps
    return Strips(-(-tokens // count), warps)
