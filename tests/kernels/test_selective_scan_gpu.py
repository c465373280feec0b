"""The CUDA backend on a GPU: against the chunked backend in float64, bitwise repeatable, capturable, on any layout."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.selective_scan.op import scan

pytestmark = pytest.mark.gpu

CROSS = ("row", "column", "row_reverse", "column_reverse")
SKIP = ("skip_even_even", "skip_odd_even", "skip_even_odd", "skip_odd_odd")
BOTH = ("forward", "backward")

# grid, routes, channels, states, batch: one step, tails, odd channels, several segments, more states than one launch.
CASES = [
    ((1,), ("forward",), 3, 4, 2),
    ((9,), BOTH, 5, 16, 2),
    ((197,), BOTH, 64, 16, 2),
    ((150,), BOTH, 33, 3, 2),
    ((7, 9), CROSS, 40, 1, 2),
    ((13, 11), SKIP, 48, 16, 2),
    ((13, 11), ("skip_odd_odd", "row"), 7, 8, 1),
    ((3, 4, 5), ("dhw", "whd_reverse", "inter_slice"), 17, 16, 2),
    ((2000,), BOTH, 48, 16, 1),
    ((1000,), ("backward",), 9, 37, 1),
    ((300,), ("forward",), 130, 256, 1),
]
# Relative error by norm; rounding inputs' gradients to bfloat16 alone costs about 2e-3.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}


def make(case: Any, dtype: torch.dtype, shared: bool, extras: bool, device: str = "cuda") -> dict[str, Any]:
    grid, routes, e, n, batch = case
    g = torch.Generator().manual_seed(0)
    k = len(routes)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g).to(device, dtype)

    tensors: dict[str, Any] = {
        "x": rand(batch, *grid, e) if shared else rand(batch, k, *grid, e),
        "delta": rand(batch, k, *grid, e) - 1,
        "A": -(torch.rand(k, e, n, generator=g) * 4 + 0.1).to(device),
        "B": rand(batch, k, *grid, n),
        "C": rand(batch, k, *grid, n),
        "D": torch.randn(k, e, generator=g).to(device) if extras else None,
        "z": rand(batch, *grid, e) if extras else None,
        "delta_bias": torch.randn(k, e, generator=g).to(device) if extras else None,
    }
    return {name: None if t is None else t.requires_grad_() for name, t in tensors.items()}


def results(tensors: dict[str, Any], routes: tuple[str, ...], merge: Any, backend: str) -> dict[str, Tensor]:
    """Outputs, and gradients of a loss that weighs every output and last state differently."""
    out, last = selective_scan_nd(
        **tensors, delta_softplus=True, return_last_state=True, routes=routes, merge=merge, backend=backend
    )
    loss = sum(
        (t.double() * torch.cos(torch.arange(t.numel(), device=t.device, dtype=torch.float64)).view(t.shape)).sum()
        for t in (out, last)
    )
    leaves = {name: t for name, t in tensors.items() if t is not None}
    grads = torch.autograd.grad(loss, list(leaves.values()))  # type: ignore[arg-type]
    return {"out": out, "last": last, **dict(zip(leaves, grads, strict=True))}


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case: Any, dtype: torch.dtype) -> None:
    for shared, extras, merge in itertools.product((False, True), (False, True), ("sum", "mean", "none")):
        tensors = make(case, dtype, shared, extras)
        wide = {n: None if t is None else t.detach().double().requires_grad_() for n, t in tensors.items()}
        got = results(tensors, case[1], merge, "cuda")
        expected = results(wide, case[1], merge, "chunked")
        for name, value in got.items():
            error = (value.double() - expected[name]).norm() / expected[name].norm().clamp_min(1e-30)
            assert error <= TOLERANCE[dtype], (name, shared, extras, merge, float(error))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
def test_extreme_steps(scale: float) -> None:
    """dt from 1e-6 to 1e3 and A down to -1e3, in float32."""
    tensors = make(((131,), BOTH, 31, 16, 2), torch.float32, False, False)
    with torch.no_grad():
        tensors["delta"].abs_().mul_(scale)
        tensors["A"].mul_(250)
    wide = {n: None if t is None else t.detach().double().requires_grad_() for n, t in tensors.items()}
    values = []
    for group, backend in ((tensors, "cuda"), (wide, "chunked")):
        out = selective_scan_nd(**group, routes=BOTH, backend=backend)
        values.append((out, *torch.autograd.grad(out.sum(), [t for t in group.values() if t is not None])))
    for narrow, exact in zip(*values, strict=True):
        assert torch.isfinite(narrow).all()
        assert (narrow - exact).norm() <= 1e-5 * exact.norm() + 1e-30


def test_two_runs_are_bitwise_equal() -> None:
    tensors = make(((500,), BOTH, 96, 16, 3), torch.bfloat16, False, True)
    first, second = (results(tensors, BOTH, "sum", "cuda") for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_strided_and_misaligned_inputs() -> None:
    """A transposed x, and one that starts at an odd element, where pairs of channels cannot be loaded at once."""
    tensors = make(((20,), BOTH, 6, 4, 2), torch.bfloat16, True, False)
    x = tensors["x"].detach()
    expected = selective_scan_nd(**tensors, routes=BOTH, backend="cuda")
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)
    for same in (x.transpose(1, 2).contiguous().transpose(1, 2), shifted):
        torch.testing.assert_close(selective_scan_nd(**tensors | {"x": same}, routes=BOTH, backend="cuda"), expected)


def test_opcheck() -> None:
    tensors = make(((5, 7), CROSS, 8, 4, 2), torch.float32, False, True)
    args = (*tensors.values(), True, ",".join(CROSS), "mean", True, "cuda")
    assert set(torch.library.opcheck(scan, args).values()) == {"SUCCESS"}


def test_graph_capture() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensors = make(((70,), BOTH, 32, 16, 2), torch.float32, False, True)
        leaves = list(tensors.values())

        def step() -> tuple[Tensor, ...]:
            out = selective_scan_nd(**tensors, delta_softplus=True, routes=BOTH, backend="cuda")
            return torch.autograd.grad(out.square().sum(), leaves)

        expected = [step() for _ in range(3)][-1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_last_device_while_the_first_is_current() -> None:
    """Needs two GPUs to say something; with one it compares the device with itself."""
    case, last = ((70,), BOTH, 32, 16, 2), torch.cuda.device_count() - 1
    there = results(make(case, torch.float32, False, True, f"cuda:{last}"), BOTH, "sum", "cuda")
    here = results(make(case, torch.float32, False, True, "cuda:0"), BOTH, "sum", "cuda")
    assert all(torch.equal(here[name].cpu(), there[name].cpu()) for name in here)
