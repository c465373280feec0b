"""The scan's CUDA programs: parameter blocks as csrc/ declares them, and the variants that are built ahead."""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

import torch

from ssmvision.kernels.cuda import ProgramSpec, register_program

__all__ = ["IO", "BackwardOut", "ForwardOut", "Scan", "state_lanes"]

# Value of the macro IO.
IO = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PACKAGE = "ssmvision.kernels.selective_scan"
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


def _fields(pointers: str, *numbers: tuple[str, type[Any]]) -> list[tuple[str, type[Any]]]:
    return [*((name, POINTER) for name in pointers.split()), *numbers]


def _ints(names: str) -> list[tuple[str, type[Any]]]:
    return [(name, INT) for name in names.split()]


class Scan(ctypes.Structure):
    """`struct Scan` of csrc/common.cuh."""

    _fields_ = _fields(
        "x delta Bm Cm z A D bias route lengths",
        ("L", LONG),
        *_ints("batch K E N n0 Ns M segments segment tiles x_per_route"),
        ("scale", FLOAT),
    )


class ForwardOut(ctypes.Structure):
    """`struct ForwardOut` of csrc/forward.cu."""

    _fields_ = _fields("out partial ungated entry saved last end sum_dt", *_ints("out_per_route"))


class BackwardOut(ctypes.Structure):
    """`struct BackwardOut` of csrc/backward.cu."""

    _fields_ = _fields(
        "u saved carry dx ddelta dx_sum ddelta_sum dB dC dA dD dbias",
        ("per_tile", LONG),
        ("per_segment", LONG),
        *_ints("u_per_route"),
    )


def state_lanes(states: int) -> int:
    """Value of the macro NS: registers a thread of the forward keeps for this many states, at most 16."""
    return next(size for size in (1, 2, 4, 8, 16) if states <= size)


FLOATS = tuple(IO.values())
FORWARD = {"THREADS": 64, "SOFTPLUS": 1}

register_program(
    ProgramSpec(
        "scan_forward",
        PACKAGE,
        "csrc/forward.cu",
        dict.fromkeys(("scan_forward", "scan_state", "scan_adjoint"), (Scan, ForwardOut)),
        [
            {"IO": io, "NS": ns, "CH": ch, "GATE": gate, **FORWARD}
            for io, ns, ch, gate in product(FLOATS, (1, 16), (1, 2), (0, 1))
        ],
    )
)
register_program(
    ProgramSpec(
        "scan_backward",
        PACKAGE,
        "csrc/backward.cu",
        {"scan_backward": (Scan, BackwardOut)},
        [{"IO": io, "PAIRS": 1, "SOFTPLUS": 1, "GATE": gate} for io, gate in product(FLOATS, (0, 1))],
    )
)
register_program(
    ProgramSpec(
        "scan_merge",
        PACKAGE,
        "csrc/merge.cu",
        {
            "carry": (*(POINTER,) * 6, *(INT,) * 6),
            "merge": (*(POINTER,) * 4, FLOAT, INT, LONG, LONG),
            "sum_rows": (*(POINTER,) * 4, INT, INT, LONG, LONG, LONG),
            "gate_backward": (*(POINTER,) * 4, LONG),
        },
        [{"IO": io} for io in FLOATS],
    )
)
