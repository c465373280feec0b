"""The channel means' CUDA programs: the parameter block as csrc/ declares it, and the variants that are built ahead."""

from __future__ import annotations

import ctypes

from ssmvision.kernels.channel_means.config import rows_at_once
from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO

__all__ = ["IO", "Means"]

POINTER, INT, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_float


class Means(ctypes.Structure):
    """`struct Means` of csrc/means.cu."""

    _fields_ = [
        *((name, POINTER) for name in ("x", "partial", "out", "gradient", "dx")),
        *((name, INT) for name in ("L", "C", "parts")),
        ("eps", FLOAT),
    ]


register_program(
    ProgramSpec(
        "channel_means",
        "ssmvision.kernels.channel_means",
        "csrc/means.cu",
        {"means_partial": (Means,), "means_sum": (Means,), "means_backward": (Means,)},
        # FusionMamba's widths 96 to 768.
        [{"IO": io, "V": 4, "PACKS": n, "ROWS": rows_at_once(n)} for io in (0, 1) for n in (1, 2, 3, 6)],
    )
)
