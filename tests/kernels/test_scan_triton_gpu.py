"""The Triton backend on a GPU: against the chunked backend in float64, bitwise repeatable, capturable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.selective_scan.op import scan
from tests.kernels.test_selective_scan_gpu import BOTH, CASES, CROSS, TOLERANCE, make, results

pytestmark = pytest.mark.gpu

# Each compiles its own kernels, so not every combination: dtype, shared x, D and gate and bias, merge.
CALLS = [
    (torch.float32, False, False, "sum"),
    (torch.float32, False, True, "mean"),
    (torch.float32, True, True, "none"),
    (torch.bfloat16, True, True, "sum"),
    (torch.float16, False, True, "none"),
]


@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64_and_repeats(case: Any, call: tuple[torch.dtype, bool, bool, str]) -> None:
    dtype, shared, extras, merge = call
    tensors = make(case, dtype, shared, extras)
    wide = {n: None if t is None else t.detach().double().requires_grad_() for n, t in tensors.items()}
    got, again = (results(tensors, case[1], merge, "triton") for _ in range(2))
    expected = results(wide, case[1], merge, "chunked")
    for name, value in got.items():
        error = (value.double() - expected[name]).norm() / expected[name].norm().clamp_min(1e-30)
        assert error <= TOLERANCE[dtype], (name, float(error))
        assert torch.equal(value, again[name])


def test_opcheck() -> None:
    tensors = make(((5, 7), CROSS, 8, 4, 2), torch.float32, False, True)
    args = (*tensors.values(), True, ",".join(CROSS), "mean", True, "triton")
    assert set(torch.library.opcheck(scan, args).values()) == {"SUCCESS"}


def test_graph_capture() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensors = make(((70,), BOTH, 32, 16, 2), torch.float32, False, True)
        leaves = list(tensors.values())

        def step() -> tuple[Tensor, ...]:
            out = selective_scan_nd(**tensors, delta_softplus=True, routes=BOTH, backend="triton")
            assert isinstance(out, Tensor)
            return torch.autograd.grad(out.square().sum(), leaves)

        expected = [step() for _ in range(3)][-1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
