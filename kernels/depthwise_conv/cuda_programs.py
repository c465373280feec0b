"""The depthwise convolution's CUDA programs: the parameter block as csrc/ declares it, and the variants built ahead."""

from __future__ import annotations

import ctypes

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO

__all__ = ["IO", "Conv", "Map"]

PACKAGE = "ssmvision.kernels.depthwise_conv"
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Map(ctypes.Structure):
    """`struct Map` of csrc/common.cuh: strides in elements."""

    _fields_ = [("at", POINTER), ("batch", LONG), ("row", LONG), ("column", LONG)]


class Conv(ctypes.Structure):
    """`struct Conv` of csrc/common.cuh."""

    _fields_ = [
        *((name, Map) for name in ("x", "out", "dpre")),
        *((name, POINTER) for name in ("weight", "bias", "partial")),
        *((name, INT) for name in ("batch", "height", "width", "channels", "units", "strip")),
    ]


def _variants(passes: tuple[tuple[int, int], ...]) -> list[dict[str, int]]:
    """VMamba's 3 x 3 kernels on aligned maps; `passes` are values of SILU and FLIP."""
    return [{"IO": io, "K": 3, "V": 4, "SILU": silu, "FLIP": flip} for io in IO.values() for silu, flip in passes]


register_program(
    ProgramSpec(
        "depthwise_forward",
        PACKAGE,
        "csrc/forward.cu",
        {"depthwise_forward": (Conv,)},
        _variants(((1, 0), (0, 1))),
    )
)
register_program(
    ProgramSpec(
        "depthwise_backward",
        PACKAGE,
        "csrc/backward.cu",
        {"depthwise_backward": (Conv,), "depthwise_sum": (*(POINTER,) * 3, INT, INT)},
        _variants(((1, 0),)),
    )
)
