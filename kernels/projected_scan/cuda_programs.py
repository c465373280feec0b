"""The projected scan's CUDA programs: parameter blocks as csrc/ declares them, and the variants built ahead."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

from ssmvision.kernels.cuda import ProgramSpec, register_program
from ssmvision.kernels.cuda.host import IO
from ssmvision.kernels.projected_scan.config import (
    SEGMENTS,
    Pass,
    Size,
    backward_pass,
    blocks_of_8,
    forward_pass,
)
from ssmvision.kernels.projected_scan.lines import lines_of, map_slots, saved_states, segment_steps
from ssmvision.kernels.routes import Grid

__all__ = ["IO", "MAX_ROUTES", "BackwardOut", "ForwardOut", "Route", "Scan", "cut_defines", "walk_defines"]

MAX_ROUTES = 8
PACKAGE = "ssmvision.kernels.projected_scan"
CROSS = ("row", "column", "row_reverse", "column_reverse")
# The four stages of VMamba's tiny and small at 224 pixels: rank of the step sizes, width of the map, channels.
STAGES = ((6, 56, 96), (12, 28, 192), (24, 14, 384), (48, 7, 768))
# Square maps whose strides are compiled in, which saves a tenth of the time; those of other sizes share their kernels.
FIXED_WIDTHS = (56, 28, 14, 7)
SHARED_BYTES = 232448
POINTER, INT, LONG, FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float


def _fields(names: str, kind: type[Any]) -> list[tuple[str, type[Any]]]:
    return [(name, kind) for name in names.split()]


class Route(ctypes.Structure):
    """`struct Route` of csrc/common.cuh."""

    _fields_ = [*_fields("length segments total s0 s1 base m0 m1 m_base", INT), ("inverse_segments", FLOAT)]


class Scan(ctypes.Structure):
    """`struct Scan` of csrc/common.cuh."""

    _fields_ = [
        *_fields("x proj W A D bias", POINTER),
        *_fields("proj_b proj_k", LONG),
        *_fields("proj_l L batch K E tiles rounds slots segments images kept apart", INT),
        ("scale", FLOAT),
        ("routes", Route * MAX_ROUTES),
    ]


class ForwardOut(ctypes.Structure):
    """`struct Out` of csrc/forward.cu."""

    _fields_ = _fields("out saved", POINTER)


class BackwardOut(ctypes.Structure):
    """`struct Out` of csrc/backward.cu."""

    _fields_ = _fields("dy saved dx sums dW dA dbias dD draw", POINTER)


def walk_defines(routes: tuple[str, ...], grid: Grid, steps: int, channels: int, row: int) -> dict[str, int | str]:
    """The macros about routes and layout.

    Args:
        routes, grid: route names, spatial size.
        steps: of a segment.
        channels: of x.
        row: elements from a position's projections to the next's.
    """
    lines = [line for line in (lines_of(name, grid) for name in routes) if line is not None]
    walk: dict[str, int | str] = {"S": steps, "RAGGED": int(any(line.length % steps for line in lines))}
    if len(grid) != 2 or grid[0] != grid[1] or grid[0] not in FIXED_WIDTHS:
        return walk
    strides, slot_strides = (
        ",".join(map(str, column)) for column in zip(*((v.step, v.slot_step) for v in lines), strict=True)
    )
    known: dict[str, int | str] = {"FIXED": 1, "ROUTES": len(lines), "STRIDES": strides, "SLOT_STRIDES": slot_strides}
    return walk | known | {"CHANNELS": channels, "PROJ_ROW": row}


def cut_defines(cut: Pass, size: Size, walk: Mapping[str, int | str], backward: bool) -> dict[str, int | str]:
    """The macros about a pass's cut; `walk`: see `walk_defines`."""
    block: dict[str, int | str] = {"THREADS": cut.threads, "SOLO": int(cut.warps == 1)}
    # In the backward of longer ranks, knowing it makes the compiler spill twice as much: 931, not 908 us at 28x28.
    full = cut.rounds * cut.warps * SEGMENTS == size.segments and not (backward and blocks_of_8(size) > 1)
    return block | ({"FULL": int(full)} if "FIXED" in walk else {})


def _shipped(choose: Callable[..., Pass | None], more: tuple[dict[str, int], ...]) -> list[dict[str, int | str]]:
    """The variants that a GPU with Hopper's shared memory asks for at the sizes of `STAGES`."""
    variants: list[dict[str, int | str]] = []
    for io, (rank, width, channels), extra in product(IO.values(), STAGES, more):
        grid = (width, width)
        steps = segment_steps(CROSS, grid, 1)
        size = Size(map_slots(grid), saved_states(CROSS, grid, 1), steps, rank, 1, io != 0)
        cut, backward = choose(size, SHARED_BYTES), choose is backward_pass
        if cut is not None:
            walk = walk_defines(CROSS, grid, steps, channels, len(CROSS) * (-(-(rank + 2) // 8) * 8))
            # Large batches of small maps take several images a block.
            common = {"IO": io, "R": rank, "NS": 1, **cut_defines(cut, size, walk, backward), **extra, **walk}
            variants += [{**common, "MANY": many} for many in ((0, 1) if width < 28 else (0,))]
    return variants


register_program(
    ProgramSpec(
        "projected_forward",
        PACKAGE,
        "csrc/forward.cu",
        {"projected_forward": (Scan, ForwardOut)},
        _shipped(forward_pass, ({"SAVE": 0}, {"SAVE": 1})),
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
        [{"IO": io, "R": rank, "NS": 1, "S": 1} for io, (rank, _, _) in product(IO.values(), STAGES)],
    )
)
