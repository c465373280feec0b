"""Where the long convolution's backends take over from each other."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ToeplitzConfig", "toeplitz_config"]


@dataclass(frozen=True)
class ToeplitzConfig:
    """Limits of the separable engine.

    Attributes:
        longest_axis: beyond it, 2 L operations a position are more than an FFT's.
        matrix_elements: all matrices of one axis.
    """

    longest_axis: int
    matrix_elements: int


def toeplitz_config(device: str) -> ToeplitzConfig:
    """Limits by device."""
    if device.startswith("cpu"):
        return ToeplitzConfig(longest_axis=1024, matrix_elements=1 << 28)
    return ToeplitzConfig(longest_axis=2048, matrix_elements=1 << 30)
