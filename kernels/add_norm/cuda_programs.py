"""The fused norm's CUDA programs: the parameter block as csrc/ declares it, and the variants that are built ahead."""

from __future__ import annotations

import ctypes

import torch

from ssmvision.kernels.cuda import ProgramSpec, register_program

__all__ = ["IO", "Norm"]

# Value of the macros HIDDEN, RESIDUAL, WEIGHT and OUT.
IO = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PACKAGE = "ssmvision.kernels.add_norm"
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


class Norm(ctypes.Structure):
    """`struct Norm` of csrc/common.cuh."""

    _fields_ = [
        *((name, POINTER) for name in ("hidden", "residual", "weight", "normed", "total", "rstd")),
        *((name, POINTER) for name in ("d_hidden", "d_residual", "partial")),
        ("rows", LONG),
        ("C", INT),
        ("eps", FLOAT),
    ]


# Vim's widths 192, 384 and 768; float32 throughout, and autocast's dtypes around a float32 stream with float32 weights.
DTYPES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2))


def _variants(*shapes: tuple[int, int, int]) -> list[dict[str, int]]:
    """For (PACKS, WARPS, ROWS) as `config.row_config` gives them."""
    return [
        {"HIDDEN": hidden, "RESIDUAL": 0, "WEIGHT": 0, "OUT": out, "V": 4, "PACKS": packs, "WARPS": warps, "ROWS": rows}
        for packs, warps, rows in shapes
        for hidden, out in DTYPES
    ]


register_program(
    ProgramSpec(
        "norm_forward",
        PACKAGE,
        "csrc/forward.cu",
        {"norm_forward": (Norm,)},
        _variants((2, 1, 4), (3, 1, 4), (6, 1, 4)),
    )
)
register_program(
    ProgramSpec(
        "norm_backward",
        PACKAGE,
        "csrc/backward.cu",
        {"norm_backward": (Norm,), "norm_sum": (POINTER, POINTER, INT, INT)},
        _variants((2, 1, 8), (3, 1, 8), (3, 2, 4)),
    )
)
