"""Where the long convolution's backends take over from each other."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ToeplitzConfig", "toeplitz_config"]


@dataclass(frozen=True)
class ToeplitzConfig:
    """Limits of the separable engine.

    Attributes:
        longest_axis: beyond it, 2 L operations a position are more than an N-D FFT's.
        longest_sequence: the same where there is one axis only: a 1D FFT pads by 2 and not by 2^d.
        matrix_elements: all matrices of one axis.
        cached_elements: float32 values of maps and matrices that a CPU works on at a time: 1 MiB, a core's L2 cache.
        fewest_features: at a time, however large they are: calls take time too.
    """

    longest_axis: int
    longest_sequence: int
    matrix_elements: int
    cached_elements: int = 1 << 18
    fewest_features: int = 8


def toeplitz_config(device: str) -> ToeplitzConfig:
    """Limits by device; the CPU's were measured on 2 cores of an AVX-512 server processor."""
    if device.startswith("cpu"):
        return ToeplitzConfig(longest_axis=1024, longest_sequence=128, matrix_elements=1 << 28)
    return ToeplitzConfig(longest_axis=2048, longest_sequence=2048, matrix_elements=1 << 30)
