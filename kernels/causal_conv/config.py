"""Launch settings of the causal convolution's CUDA kernels, apart from the code that runs them."""

from __future__ import annotations

__all__ = ["BACKWARD_WARPS", "THREADS", "backward_strip", "channels_per_thread", "forward_strip"]

THREADS = 128  # per block of the forward
BACKWARD_WARPS = 4  # per block of the backward, WARPS in csrc/backward.cu
# A thread holds its channels' taps in registers; with more than this many values they no longer fit beside the window.
TAP_REGISTERS = 32


def channels_per_thread(routes: int, taps: int, aligned: int) -> int:
    """Neighbouring channels that a thread owns: 4, 2 or 1.

    Args:
        routes, taps: K and W.
        aligned: largest number of channels by which every row's start and every tensor's address can be divided.
    """
    return next((v for v in (4, 2) if v <= aligned and v * routes * taps <= TAP_REGISTERS), 1)


def forward_strip(rows: int, steps: int, processors: int) -> int:
    """Tokens that a thread of the forward walks.

    Args:
        rows: threads side by side, batch x E / channels.
        steps: tokens to be walked.
        processors: multiprocessors of the device.
    """
    return _strip(rows, steps, wanted=processors * 1024, shortest=4)


def backward_strip(rows: int, steps: int, processors: int) -> int:
    """Tokens that a thread of the backward walks, taps - 1 more read again at either end; arguments as above."""
    return _strip(rows, steps, wanted=processors * 384, shortest=8)


def _strip(rows: int, steps: int, wanted: int, shortest: int) -> int:
    strips = max(wanted // max(rows, 1), 1)
    return max(-(-steps // strips), shortest)
