"""The CUDA programs for planes: parameter blocks as csrc/plane.cuh declares them, and the variants built ahead."""

from __future__ import annotations

import ctypes

import torch

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.s4nd.cuda_config import backward_config, backward_shared_bytes, forward_config

__all__ = ["KIO", "Maps", "Plane", "Taps", "defines"]

# Value of the macro KIO.
KIO = {torch.float32: 0, torch.bfloat16: 1}
PACKAGE = "ssmvision.kernels.s4nd"
POINTER, INT, LONG = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64


class Maps(ctypes.Structure):
    """`struct Maps` of csrc/plane.cuh; strides in elements."""

    _fields_ = [("at", POINTER), ("image", LONG), ("feature", LONG), ("row", INT)]


class Taps(ctypes.Structure):
    """`struct Taps` of csrc/plane.cuh."""

    _fields_ = [("at", POINTER), ("taps", INT), ("center", INT)]


class Plane(ctypes.Structure):
    """`struct Plane` of csrc/plane.cuh."""

    _fields_ = [
        *((name, Maps) for name in ("u", "dy")),
        *((name, Taps) for name in ("y", "x")),
        *((name, POINTER) for name in ("D", "out", "partial")),
        *((name, INT) for name in ("batch", "H", "chunks", "per")),
    ]


def defines(
    grid: tuple[int, int], width: int, dense: bool, kio: int, skip: bool, need_u: bool | None = None
) -> dict[str, int]:
    """Macro definitions of a variant; of the backward if `need_u` is given.

    Args:
        grid: sizes of the plane.
        width: bytes that a copy takes.
        dense: whether rows lie one behind the other.
        kio: type of the taps.
        skip: whether there is a D.
        need_u: whether u's gradient is wanted.
    """
    config = forward_config(grid) if need_u is None else backward_config(grid)
    common = {"LY": grid[0], "LX": grid[1], "P": config.images, "BLOCKS": config.blocks, "STAGES": config.stages}
    options = {"VEC": width, "DENSE": int(dense), "KIO": kio, "SKIP": int(skip)}
    if need_u is None:
        return {**common, **options, "WARPS": config.warps}
    return {**common, **options, "NEED_U": int(need_u), "SHARED_BYTES": backward_shared_bytes(grid, config)}


# ConvNeXt's maps of an image of 224 pixels, and the widest copies that their rows allow.
STAGES = ((56, 16), (28, 8), (14, 4), (7, 2))

register_program(
    ProgramSpec(
        "plane_forward",
        PACKAGE,
        "csrc/plane_forward.cu",
        {"plane_forward": (Plane,)},
        [defines((size, size), width, True, 0, True) for size, width in STAGES],
    )
)
register_program(
    ProgramSpec(
        "plane_backward",
        PACKAGE,
        "csrc/plane_backward.cu",
        {"plane_backward": (Plane,), "plane_sum": (Plane, *(POINTER,) * 3)},
        [defines((size, size), width, True, 0, True, need_u=True) for size, width in STAGES],
    )
)
