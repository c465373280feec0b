"""The sub-grids' CUDA programs: parameter blocks as csrc/ declares them, and the variants that are built ahead."""

from __future__ import annotations

import ctypes

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO
from ssmvision.kernels.subgrids.config import COLUMNS

__all__ = ["IO", "Conv", "Norm"]

PACKAGE = "ssmvision.kernels.subgrids"
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Conv(ctypes.Structure):
    """`struct Conv` of csrc/conv.cu; strides in elements."""

    _fields_ = [
        *((name, POINTER) for name in ("x", "weight", "bias", "out")),
        *((name, LONG) for name in ("image", "line")),
        *((name, INT) for name in ("pixel", "batch", "H", "W", "E")),
    ]


class Norm(ctypes.Structure):
    """`struct Norm` of csrc/norm.cu; strides in elements."""

    _fields_ = [
        *((name, POINTER) for name in ("y", "gate", "weight", "bias", "out")),
        *((name, LONG) for name in ("y_image", "y_grid", "image", "line")),
        *((name, INT) for name in ("pixel", "batch", "H", "W", "E")),
        ("eps", FLOAT),
    ]


# Float32, and bfloat16 with weights in the map's dtype or in float32 as under autocast.
DTYPES = ((0, 0), (1, 0), (1, 1))
# FusionMamba's inner widths 192 to 1536.
PACKS = (2, 3, 6, 12)

register_program(
    ProgramSpec(
        "subgrid_conv",
        PACKAGE,
        "csrc/conv.cu",
        {"subgrid_conv": (Conv,)},
        [{"IO": io, "WIO": wio, "V": 4, "COLUMNS": columns} for io, wio in DTYPES for columns in COLUMNS],
    )
)
register_program(
    ProgramSpec(
        "subgrid_norm",
        PACKAGE,
        "csrc/norm.cu",
        {"subgrid_norm": (Norm,)},
        [
            {"IO": io, "WIO": wio, "V": 4, "PACKS": packs, "SILU": silu}
            for io, wio in DTYPES
            for packs in PACKS
            for silu in (0, 1)
        ],
    )
)
