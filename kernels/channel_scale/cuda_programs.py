"""The channel scale's CUDA program: the parameter block as csrc/ declares it, and the variants that are built ahead."""

from __future__ import annotations

import ctypes

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO

__all__ = ["IO", "Scale"]

POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Scale(ctypes.Structure):
    """`struct Scale` of csrc/scale.cu."""

    _fields_ = [
        *((name, POINTER) for name in ("first", "second", "weights", "out")),
        ("packs", LONG),
        *((name, INT) for name in ("L", "C")),
    ]


register_program(
    ProgramSpec(
        "channel_scale",
        "ssmvision.kernels.channel_scale",
        "csrc/scale.cu",
        {"channel_scale": (Scale,)},
        [
            {"IO": io, "WIO": wio, "V": 8 if io else 4, "MAPS": maps}
            for io, wio in ((0, 0), (1, 0), (1, 1))
            for maps in (1, 2)
        ],
    )
)
