"""The projected scan's programs agree with Python and compile beyond what is built ahead; no GPU is needed."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from ssmvision.kernels.cuda import programs
from ssmvision.kernels.projected_scan import cuda_programs
from ssmvision.kernels.projected_scan.config import (
    BACKWARD_THREADS,
    BACKWARD_WARPS,
    FORWARD_THREADS,
    FORWARD_WARPS,
    MOST_WARPS,
    ROOM,
    TILE,
    Size,
    backward_pass,
    forward_pass,
)
from ssmvision.kernels.projected_scan.cuda_programs import (
    BackwardOut,
    ForwardOut,
    Route,
    Scan,
    cut_defines,
    walk_defines,
)
from ssmvision.kernels.projected_scan.lines import map_slots, saved_states, segment_steps

ARCH = "sm_90"
CSRC = files("ssmvision.kernels.projected_scan").joinpath("csrc")
CROSS = ("row", "column", "row_reverse", "column_reverse")
# Dtype, rank, states, steps of a segment: an odd rank, B and C in different blocks of 8, several states, weights in
# shared memory.
SHAPES = [(0, 5, 1, 5), (1, 7, 2, 3), (2, 8, 4, 2), (0, 48, 1, 7)]


def variant(program: str, **defines: int | str) -> bytes:
    (found,) = (p for p in programs() if p.spec.name == program)
    return found.variant(defines).build(ARCH).cubin


@pytest.mark.parametrize(
    ("file", "structure", "ours"),
    [
        ("common.cuh", "Route", Route),
        ("common.cuh", "Scan", Scan),
        ("forward.cu", "Out", ForwardOut),
        ("backward.cu", "Out", BackwardOut),
    ],
)
def test_parameter_blocks_have_the_fields_of_the_source(file: str, structure: str, ours: type) -> None:
    """Same names in the same order: a field that is missing on one side would shift all that follow."""
    match = re.search(rf"struct {structure} {{(.*?)\n}};", CSRC.joinpath(file).read_text(), re.DOTALL)
    assert match is not None
    body = re.sub(r"//.*", "", match[1])
    declared = []
    for line in body.split(";"):
        first, *rest = line.strip().split(",")
        declared += [name.split()[-1].strip(" *").partition("[")[0] for name in (first, *rest) if name.strip()]
    assert declared == [name for name, _ in ours._fields_]  # type: ignore[attr-defined]


def test_constants_agree_with_the_source() -> None:
    text = CSRC.joinpath("common.cuh").read_text()
    assert f"constexpr int TILE = {TILE};" in text
    assert f"constexpr int ROOM = {ROOM};" in text
    assert f"constexpr int MAX_ROUTES = {cuda_programs.MAX_ROUTES}, MOST_WARPS = {MOST_WARPS};" in text
    assert max(warps for _, warps in FORWARD_WARPS + BACKWARD_WARPS) <= MOST_WARPS


@pytest.mark.parametrize(
    ("width", "rank", "backward", "solo", "full"),
    [(56, 6, 1, 0, 1), (56, 6, 0, 0, 1), (28, 12, 1, 0, 0), (14, 24, 1, 0, 0), (7, 48, 1, 1, 0), (8, 6, 0, 0, None)],
)
def test_one_warp_and_no_idle_lane_are_compiled_in(
    width: int, rank: int, backward: int, solo: int, full: int | None
) -> None:
    grid = (width, width)
    steps = segment_steps(CROSS, grid, 1)
    size = Size(map_slots(grid), saved_states(CROSS, grid, 1), steps, rank, 1, True)
    cut = (backward_pass if backward else forward_pass)(size, 232448)
    assert cut is not None
    defines = cut_defines(cut, size, walk_defines(CROSS, grid, steps, 16, 32), bool(backward))
    assert defines == {"THREADS": cut.threads, "SOLO": solo} | ({} if full is None else {"FULL": full})


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_unusual_variants_compile(shape: tuple[int, int, int, int]) -> None:
    io, rank, states, steps = shape
    common: dict[str, int | str] = {"IO": io, "R": rank, "NS": states}
    walk = walk_defines(CROSS, (9, 11), steps, 32, 32)
    assert set(walk) == {"S", "RAGGED"}
    assert variant("projected_forward", **common, THREADS=FORWARD_THREADS, SOLO=io % 2, SAVE=1, MANY=1, **walk)
    assert variant("projected_backward", **common, THREADS=BACKWARD_THREADS, SOLO=io % 2, MANY=1, **walk)
    assert variant("projected_merge", **common, S=1)
