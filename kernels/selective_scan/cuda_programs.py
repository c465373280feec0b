"""The scan's CUDA programs: parameter blocks as csrc/ declares them, and the variants that are built ahead."""

from __future__ import annotations

import ctypes
from itertools import product
from typing import Any

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO

__all__ = ["IO", "BackwardOut", "ForwardOut", "Scan", "StateOut", "Stream", "state_lanes"]

PACKAGE = "ssmvision.kernels.selective_scan"
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


def _fields(pointers: str, *numbers: tuple[str, type[Any]]) -> list[tuple[str, type[Any]]]:
    return [*((name, POINTER) for name in pointers.split()), *numbers]


def _ints(names: str) -> list[tuple[str, type[Any]]]:
    return [(name, INT) for name in names.split()]


class Stream(ctypes.Structure):
    """`struct Stream` of csrc/common.cuh; strides in bytes."""

    _fields_ = _fields("at", ("batch", LONG), ("route", LONG), *_ints("row"))


class Scan(ctypes.Structure):
    """`struct Scan` of csrc/common.cuh."""

    _fields_ = [
        *((name, Stream) for name in ("x", "delta", "Bm", "Cm", "z")),
        *_fields("A D bias route lengths mirror", ("L", LONG)),
        *_ints("batch K E N n0 Ns M segments segment tiles"),
        ("scale", FLOAT),
    ]


class ForwardOut(ctypes.Structure):
    """`struct ForwardOut` of csrc/forward.cu."""

    _fields_ = _fields("out partial ungated entry saved last pairs", *_ints("out_per_route"))


class StateOut(ctypes.Structure):
    """`struct StateOut` of csrc/state.cu."""

    _fields_ = _fields("end sum_dt")


class BackwardOut(ctypes.Structure):
    """`struct BackwardOut` of csrc/backward.cu."""

    _fields_ = [
        ("u", Stream),
        *_fields("saved carry dx ddelta dB dC dA dD dbias"),
        *(("per_tile", LONG), ("per_segment", LONG), ("bc_row", LONG)),
    ]


def state_lanes(states: int, least: int = 1) -> int:
    """Value of the macro NS: states that a kernel keeps room for, where a launch has `states`, at most 16."""
    return next(size for size in (1, 2, 4, 8, 16) if size >= max(states, least))


FLOATS = tuple(IO.values())
WIDE = {"NS": 16, "CH": 2, "VEC": 1, "SOFTPLUS": 1}
WIDE_BACKWARD = {"NS": 16, "PAIRS": 1, "VEC": 1, "SOFTPLUS": 1, "GROUPED": 0}

register_program(
    ProgramSpec(
        "scan_forward",
        PACKAGE,
        "csrc/forward.cu",
        {"scan_forward": (Scan, ForwardOut)},
        [
            {"IO": io, **WIDE, "OUT": out, "GATE": gate, "MAIL": mail}
            for io, (out, gate, mail) in product(
                FLOATS, ((0, 0, 1), (1, 0, 1), (1, 1, 1), (2, 0, 1), (2, 1, 1), (3, 0, 1), (2, 1, 0))
            )
        ],
    )
)
register_program(
    ProgramSpec(
        "scan_state",
        PACKAGE,
        "csrc/state.cu",
        dict.fromkeys(("scan_state", "scan_adjoint"), (Scan, StateOut)),
        [{"IO": io, **WIDE, "GATE": gate} for io, gate in product(FLOATS, (0, 1))],
    )
)
register_program(
    ProgramSpec(
        "scan_backward",
        PACKAGE,
        "csrc/backward.cu",
        {"scan_backward": (Scan, BackwardOut)},
        [
            {"IO": io, **WIDE_BACKWARD, "GATE": gate, "FLOAT_DX": shared, "MAIL": mail}
            for io, (gate, shared, mail) in product(FLOATS, ((0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 1), (1, 0, 0)))
        ],
    )
)
register_program(
    ProgramSpec(
        "scan_merge",
        PACKAGE,
        "csrc/merge.cu",
        {
            "carry": (*(POINTER,) * 5, *(INT,) * 6),
            "merge": (*(POINTER,) * 4, FLOAT, INT, LONG, INT, INT),
            "sum_rows": (*(POINTER,) * 4, INT, INT, LONG, LONG, LONG),
            "gate_backward": (*(POINTER,) * 4, INT, INT, LONG, LONG, INT),
        },
        [{"IO": io} for io in FLOATS],
    )
)
