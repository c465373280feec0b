"""The convolution's CUDA programs: the parameter block as csrc/ declares it, and the variants that are built ahead."""

from __future__ import annotations

import ctypes

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO

__all__ = ["IO", "Conv", "Rows"]

PACKAGE = "ssmvision.kernels.causal_conv"
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Rows(ctypes.Structure):
    """`struct Rows` of csrc/common.cuh: strides in elements."""

    _fields_ = [("at", POINTER), ("batch", LONG), ("route", LONG), ("row", INT)]


class Conv(ctypes.Structure):
    """`struct Conv` of csrc/common.cuh."""

    _fields_ = [
        ("x", Rows),
        ("out", Rows),
        ("dx", Rows),
        ("weight", POINTER),
        ("bias", POINTER),
        ("partial", POINTER),
        *((name, INT) for name in ("batch", "L", "E", "strip", "strips", "tiles")),
    ]


def _variants(two: int) -> list[dict[str, int]]:
    """Weights in float32, as under autocast, or in the tokens' dtype; one direction, and Vim's two.

    Args:
        two: channels per thread with two directions, as `config.channels_per_thread` has it.
    """
    return [
        {"IO": io, "WIO": wio, "K": k, "REVERSE": reverse, "W": 4, "V": v, "SILU": 1}
        for io, wio in ((0, 0), (1, 0), (1, 1), (2, 0), (2, 2))
        for k, reverse, v in ((1, 0, 4), (2, 2, two))
    ]


register_program(ProgramSpec("conv_forward", PACKAGE, "csrc/forward.cu", {"conv_forward": (Conv,)}, _variants(2)))
register_program(
    ProgramSpec(
        "conv_backward",
        PACKAGE,
        "csrc/backward.cu",
        {"conv_backward": (Conv,), "conv_sum": (*(POINTER,) * 3, INT, INT, INT)},
        _variants(4),
    )
)
