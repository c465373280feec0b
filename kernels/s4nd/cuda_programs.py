"""The CUDA programs for planes: parameter blocks as csrc/plane.cuh declares them, and the variants built ahead."""

from __future__ import annotations

import ctypes

import torch

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.s4nd.cuda_config import (
    backward_config,
    backward_shared_bytes,
    forward_config,
    forward_shared_bytes,
)

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
    forward = need_u is None
    config = forward_config(grid) if forward else backward_config(grid)
    size = forward_shared_bytes(grid, config) if forward else backward_shared_bytes(grid, config)
    return {
        "LY": grid[0],
        "LX": grid[1],
        "P": config.images,
        "STAGES": config.stages,
        "BLOCKS": config.blocks,
        "SHARED_BYTES": size,
        "VEC": width,
        "DENSE": int(dense),
        "KIO": kio,
        "SKIP": int(skip),
        **({"WARPS": config.warps} if forward else {"NEED_U": int(bool(need_u))}),
    }


# ConvNeXt's maps of an image of 224 pixels, and the widest copies that their rows allow.
STAGES = ((56, 16), (28, 8), (14, 4), (7, 2))
SUM = (Plane, *(POINTER,) * 3)


def _register(name: str, sizes: tuple[tuple[int, int], ...], backward: bool) -> None:
    need_u = True if backward else None
    variants = [defines((size, size), width, True, 0, True, need_u) for size, width in sizes]
    kernels = {name: (Plane,), **({"plane_sum": SUM} if backward else {})}
    register_program(ProgramSpec(name, PACKAGE, f"csrc/{name}.cu", kernels, variants))


_register("plane_forward", STAGES, backward=False)
_register("plane_backward", STAGES, backward=True)
# Of an image of 384 pixels the first stage.
_register("plane_block_forward", ((96, 16),), backward=False)
_register("plane_block_backward", ((96, 16),), backward=True)
