"""The projected scan's kernels on a GPU: against float64, bitwise repeatable, capturable, on any layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.projected_scan import projected_scan_nd, projected_scan_packed
from ssmvision.kernels.projected_scan.args import ProjectedArgs
from ssmvision.kernels.projected_scan.op import OP, projected_scan, request_of

pytestmark = pytest.mark.gpu

CROSS = ("row", "column", "row_reverse", "column_reverse")
# grid, routes, channels, rank, states: one position, tails, odd widths and ranks, half a tile, several rounds.
CASES = [
    ((1,), ("forward",), 16, 6, 1),
    ((197,), ("forward", "backward"), 24, 5, 1),
    ((5, 7), CROSS, 16, 6, 1),
    ((13, 9), CROSS, 40, 12, 1),
    ((33, 17), CROSS, 96, 6, 1),
    ((14, 14), CROSS, 32, 24, 1),
    ((7, 7), CROSS, 32, 48, 1),
    ((56, 56), CROSS, 16, 6, 1),
    ((9, 11), CROSS, 32, 4, 2),
    ((9, 11), CROSS, 32, 8, 4),
    ((12, 31), ("column", "row_reverse"), 48, 3, 1),
]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-3, torch.float16: 2e-3}


def make(case: Any, dtype: torch.dtype, bias: float = -3.0, batch: int = 2) -> dict[str, Any]:
    grid, routes, channels, rank, states = case
    g, k = torch.Generator().manual_seed(0), len(routes)

    def rand(*shape: int, to: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=g).to("cuda", to).requires_grad_()

    A = -torch.rand(k, channels, states, generator=g) * 4 - 0.1
    return {
        "x": rand(batch, *grid, channels, to=dtype),
        "low": rand(batch, k, *grid, rank, to=dtype),
        "dt_weight": rand(k, channels, rank),
        "A": A.cuda().requires_grad_(),
        "B": rand(batch, k, *grid, states, to=dtype),
        "C": rand(batch, k, *grid, states, to=dtype),
        "D": rand(k, channels),
        "delta_bias": (rand(k, channels).detach() + bias).requires_grad_(),
    }


def results(
    t: dict[str, Any], routes: tuple[str, ...], merge: Any, backend: str, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Output and gradients of a weighted sum; the weights have `dtype`'s digits, so that no run has to round them."""
    out = projected_scan_nd(**t, routes=routes, merge=merge, backend=backend)
    weights = torch.cos(torch.arange(out.numel(), device="cuda")).to(dtype).double().view(out.shape)
    leaves = {name: v for name, v in t.items() if v is not None}
    grads = torch.autograd.grad((out.double() * weights).sum(), list(leaves.values()))
    return {"out": out, **dict(zip(leaves, grads, strict=True))}


def wide(t: dict[str, Any]) -> dict[str, Any]:
    return {n: None if v is None else v.detach().double().requires_grad_() for n, v in t.items()}


def assert_near(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    errors = {n: ((v.double() - want[n]).norm() / want[n].norm().clamp_min(1e-30)).item() for n, v in got.items()}
    assert all(error <= tolerance for error in errors.values()), errors


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case: Any, dtype: torch.dtype) -> None:
    for merge in ("sum", "mean"):
        t = make(case, dtype)
        want = results(wide(t), case[1], merge, "composition", dtype)
        # Few positions leave few numbers to average rounding over.
        tolerance = TOLERANCE[dtype] * (1.3 if want["out"].numel() < 10000 else 1)
        assert_near(results(t, case[1], merge, "cuda", dtype), want, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("grid", "batch"), [((7, 7), 800), ((14, 11), 401)])
def test_blocks_of_several_images(grid: tuple[int, int], batch: int, dtype: torch.dtype) -> None:
    t = make((grid, CROSS, 48, 24, 1), dtype, batch=batch)
    got = results(t, CROSS, "sum", "cuda", dtype)
    assert_near(got, results(wide(t), CROSS, "sum", "composition", dtype), TOLERANCE[dtype])
    again = results(t, CROSS, "sum", "cuda", dtype)
    assert all(torch.equal(again[name], got[name]) for name in got)
    few = {n: v[-3:] if n in ("x", "low", "B", "C") else v for n, v in t.items()}  # each on its own
    out = projected_scan_nd(**few, routes=CROSS, backend="cuda")
    assert torch.equal(out, got["out"][-3:])


@pytest.mark.parametrize("bias", [-14.0, 0.0, 7.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_steps_from_a_millionth_to_a_thousand(dtype: torch.dtype, bias: float) -> None:
    case = ((13, 9), CROSS, 32, 6, 1)
    t = make(case, dtype, bias)
    with torch.no_grad():
        if bias > 0:
            t["dt_weight"] *= 150  # arguments of a few hundred, either sign, whose last digit in float32 is 3e-5
    tolerance = max(TOLERANCE[dtype] * 1.3, 5e-5 if bias > 0 else 0.0)
    want = results(wide(t), CROSS, "sum", "composition", dtype)
    assert_near(results(t, CROSS, "sum", "cuda", dtype), want, tolerance)


def test_absent_skip_and_bias() -> None:
    t = make(((13, 9), CROSS, 32, 6, 1), torch.float32) | {"D": None, "delta_bias": None}
    assert_near(results(t, CROSS, "sum", "cuda"), results(wide(t), CROSS, "sum", "composition"), 1e-5)


def test_two_runs_are_bitwise_equal() -> None:
    t = make(((56, 56), CROSS, 48, 6, 1), torch.bfloat16)
    first, second = (results(t, CROSS, "sum", "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_strided_and_a_misaligned_input_give_the_same() -> None:
    t = {n: v.detach() for n, v in make(((13, 9), CROSS, 32, 6, 1), torch.bfloat16).items()}
    packed = torch.cat([t[n].movedim(1, -2) for n in ("low", "B", "C")], -1)
    rest = (t["dt_weight"], t["A"], t["D"], t["delta_bias"])
    want = projected_scan_packed(t["x"], packed, *rest, routes=CROSS, backend="cuda")
    strided = torch.cat([packed, packed], -1)[..., 8:]
    shifted = torch.empty(packed.numel() + 1, dtype=packed.dtype, device="cuda")[1:].view(packed.shape).copy_(packed)
    moved = torch.empty(t["x"].numel() + 1, dtype=packed.dtype, device="cuda")[1:].view(t["x"].shape).copy_(t["x"])
    for x, projected in ((t["x"], strided), (t["x"], shifted), (moved, packed)):
        assert torch.equal(projected_scan_packed(x, projected, *rest, routes=CROSS, backend="cuda"), want)


def test_operator_rules() -> None:
    t = make(((5, 7), CROSS, 16, 6, 1), torch.float32)
    packed = torch.cat([t[n].movedim(1, -2) for n in ("low", "B", "C")], -1).detach().requires_grad_()
    args = (t["x"], packed, t["dt_weight"], t["A"], t["D"], t["delta_bias"])
    torch.library.opcheck(projected_scan, (*args, ",".join(CROSS), "sum", True, "cuda"))


def test_captured_in_a_graph() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # autograd works on the stream on which the leaves were made
        t = make(((13, 9), CROSS, 32, 6, 1), torch.bfloat16)
        want = results(t, CROSS, "sum", "cuda")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = results(t, CROSS, "sum", "cuda")
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_what_the_kernels_refuse_runs_as_the_composition() -> None:
    t = make(((80, 80), CROSS, 16, 6, 1), torch.float32)
    x, projected = t["x"].flatten(1, 2), t["low"].new_empty(2, 6400, 4, 8)
    args = ProjectedArgs(x, projected, t["dt_weight"], t["A"], t["D"], t["delta_bias"], CROSS, (80, 80), "sum")
    reasons = registry.explain(OP, request_of(args))
    assert "6400 positions do not fit" in str(reasons["cuda"])
    assert registry.choose(OP, request_of(args)).name == "composition"
    assert_near(results(t, CROSS, "sum", "auto"), results(wide(t), CROSS, "sum", "composition"), 1e-5)
