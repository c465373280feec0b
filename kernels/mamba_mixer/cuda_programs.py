"""The mixer's own CUDA programs: the parameter block as csrc/ declares it, and the variants that are built ahead."""

from __future__ import annotations

import ctypes

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO

__all__ = ["ENTRIES", "IO", "PACK_PER_BLOCK", "Pack"]

ENTRIES = 24
PACK_PER_BLOCK = 2048
PACKAGE = "ssmvision.kernels.mamba_mixer"
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Pack(ctypes.Structure):
    """`struct Pack` of csrc/pack.cu."""

    _fields_ = (
        ("source", POINTER * ENTRIES),
        ("offset", INT * ENTRIES),
        ("count", INT * ENTRIES),
        ("block", INT * ENTRIES),
        ("row", INT * ENTRIES),
        ("stride", INT * ENTRIES),
        ("entries", INT),
        ("exact", INT),
        ("exponential", INT),
    )


register_program(
    ProgramSpec(
        "mixer_pack",
        PACKAGE,
        "csrc/pack.cu",
        {"pack": (Pack, POINTER, POINTER)},
        [{"SRC": 0, "IO": io} for io in IO.values()] + [{"SRC": io, "IO": io} for io in (1, 2)],
    )
)
register_program(
    ProgramSpec(
        "mixer_gate",
        PACKAGE,
        "csrc/gate.cu",
        {"gate_backward": (*(POINTER,) * 5, LONG, INT, LONG, LONG)},
        [{"IO": io, "VEC": vec} for io in IO.values() for vec in (1, 4 if io == 0 else 8)],
    )
)
