"""The fused norm's CUDA programs: the parameter block as csrc/ declares it, and the variants that are built ahead."""

from __future__ import annotations

import ctypes

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO

__all__ = ["IO", "Norm"]

PACKAGE = "ssmvision.kernels.add_norm"
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Norm(ctypes.Structure):
    """`struct Norm` of csrc/common.cuh."""

    _fields_ = [
        *((name, POINTER) for name in ("hidden", "residual", "weight", "bias", "normed", "total", "rstd", "mean")),
        *((name, POINTER) for name in ("d_hidden", "d_residual", "partial")),
        ("rows", LONG),
        ("C", INT),
        ("eps", FLOAT),
    ]


# Hidden, residual and normed. Vim's RMS norms: float32 throughout, and autocast's dtypes around a float32 stream.
STREAM = ((0, 0, 0), (1, 0, 1), (2, 0, 2), (0, 0, 1), (0, 0, 2))
# Layer norms of maps: every dtype by itself, and autocast's out of float32.
MAPS = ((0, 0, 0), (1, 1, 1), (2, 2, 2), (0, 0, 1))


def _variants(centered: int, *shapes: tuple[int, int, int]) -> list[dict[str, int]]:
    """For (PACKS, LANES, ROWS) as `config.row_config` gives them, with float32 parameters."""
    return [
        {
            "HIDDEN": hidden, "RESIDUAL": residual, "WEIGHT": 0, "OUT": out,
            "V": 4, "PACKS": packs, "LANES": lanes, "ROWS": rows, "CENTERED": centered,
        }
        for packs, lanes, rows in shapes
        for hidden, residual, out in (MAPS if centered else STREAM)
    ]  # fmt: skip


# Widths 192, 384 and 768 of Vim; 96 to 768 of the stages of VMamba.
register_program(
    ProgramSpec(
        "norm_forward",
        PACKAGE,
        "csrc/forward.cu",
        {"norm_forward": (Norm,)},
        [
            *_variants(0, (3, 16, 8), (3, 32, 4), (6, 32, 4)),
            *_variants(1, (3, 8, 16), (3, 16, 8), (3, 32, 4), (6, 32, 4)),
        ],
    )
)
register_program(
    ProgramSpec(
        "norm_backward",
        PACKAGE,
        "csrc/backward.cu",
        {"norm_backward": (Norm,), "norm_sum": (POINTER, POINTER, POINTER, INT, INT, INT)},
        [
            *_variants(0, (3, 16, 16), (3, 32, 8), (3, 64, 4)),
            *_variants(1, (3, 8, 32), (3, 16, 16), (3, 32, 8), (3, 64, 4)),
        ],
    )
)
