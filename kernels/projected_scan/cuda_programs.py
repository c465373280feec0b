"""The projected scan's CUDA programs: parameter blocks as csrc/ declares them, and the variants built ahead."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import product
from typing import Any

import torch

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.projected_scan.args import saved_steps
from ssmvision.kernels.projected_scan.config import Pass, backward_pass, forward_pass

__all__ = ["IO", "MAX_ROUTES", "BackwardOut", "ForwardOut", "Route", "Scan"]

# Value of the macro IO.
IO = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
MAX_ROUTES = 8
PACKAGE = "ssmvision.kernels.projected_scan"
# VMamba's four stages at 224 pixels: rank of the step sizes, and width of the map.
STAGES = ((6, 56), (12, 28), (24, 14), (48, 7))
SHARED_BYTES = 232448
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


def _fields(names: str, kind: type[Any]) -> list[tuple[str, type[Any]]]:
    return [(name, kind) for name in names.split()]


class Route(ctypes.Structure):
    """`struct Route` of csrc/common.cuh."""

    _fields_ = [*_fields("n0 s0 s1 base", INT), ("inverse_n0", FLOAT)]


class Scan(ctypes.Structure):
    """`struct Scan` of csrc/common.cuh."""

    _fields_ = [
        *_fields("x proj W A D bias", POINTER),
        *_fields("proj_b proj_k", LONG),
        *_fields("proj_l L batch K E tiles rounds", INT),
        ("rows_magic", ctypes.c_uint32),
        ("scale", FLOAT),
        ("routes", Route * MAX_ROUTES),
    ]


class ForwardOut(ctypes.Structure):
    """`struct Out` of csrc/forward.cu."""

    _fields_ = _fields("out saved", POINTER)


class BackwardOut(ctypes.Structure):
    """`struct Out` of csrc/backward.cu."""

    _fields_ = _fields("dy saved dx sums dW dA dbias dD draw", POINTER)


def _shipped(choose: Callable[..., Pass | None], more: tuple[dict[str, int], ...]) -> list[dict[str, int]]:
    """The variants that a GPU with Hopper's shared memory asks for at the sizes of `STAGES`."""
    variants = []
    for io, (rank, width), extra in product(IO.values(), STAGES, more):
        cut = choose(width * width, rank, 1, io != 0, SHARED_BYTES)
        if cut is not None:
            one_turn = int(width >= cut.steps)
            variants.append(
                {"IO": io, "R": rank, "NS": 1, "S": cut.steps, "THREADS": cut.threads, "ONE_TURN": one_turn, **extra}
            )
    return variants


register_program(
    ProgramSpec(
        "projected_forward",
        PACKAGE,
        "csrc/forward.cu",
        {"projected_forward": (Scan, ForwardOut)},
        _shipped(forward_pass, ({"SAVE": 0}, {"SAVE": saved_steps(1)})),
    )
)
register_program(
    ProgramSpec(
        "projected_backward",
        PACKAGE,
        "csrc/backward.cu",
        {"projected_backward": (Scan, BackwardOut)},
        _shipped(backward_pass, ({},)),
    )
)
register_program(
    ProgramSpec(
        "projected_merge",
        PACKAGE,
        "csrc/merge.cu",
        {"projected_merge": (POINTER, POINTER, LONG, INT, FLOAT)},
        [{"IO": io, "R": rank, "NS": 1, "S": 1, "ONE_TURN": 0} for io, (rank, _) in product(IO.values(), STAGES)],
    )
)
