"""The 3D convolution's Triton backend on a GPU: against the FFT in float64, bitwise repeatable, capturable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.registry import choose
from ssmvision.kernels.s4nd import long_conv_nd
from ssmvision.kernels.s4nd.args import ConvRequest
from ssmvision.kernels.s4nd.op import OP

pytestmark = pytest.mark.gpu

# Relative, by norm: operands and what lies between the axes are rounded to bfloat16.
TOLERANCE = 1e-2


class Case(NamedTuple):
    grid: tuple[int, int, int]
    batch: int = 1
    features: int = 3
    two_sided: bool = True
    skip: bool = True
    dtype: torch.dtype = torch.bfloat16


CASES = [
    Case((64, 64, 64), features=2),
    Case((128, 128, 128), features=2),
    Case((96, 80, 112), features=2),
    Case((16, 32, 48), batch=3, features=5),
    Case((7, 33, 18), batch=2, skip=False),
    Case((1, 50, 3), batch=2),
    Case((40, 1, 1)),
    Case((20, 24, 9), two_sided=False),
    Case((128, 48, 65), dtype=torch.float32),
    Case((30, 64, 16), batch=2, dtype=torch.float16),
]


def make(case: Case) -> list[Tensor]:
    """u, the skip's weight if there is one, and a kernel an axis."""
    generator = torch.Generator("cuda").manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device="cuda")

    taps = [length * (1 + case.two_sided) for length in case.grid]
    kernels = [rand(case.features, size) / size**0.5 for size in taps]
    D = [rand(case.features)] if case.skip else []
    return [rand(case.batch, case.features, *case.grid).to(case.dtype), *D, *kernels]


def results(leaves: list[Tensor], case: Case, backend: str, dout: Tensor) -> list[Tensor]:
    """The result and all gradients."""
    leaves = [t.detach().requires_grad_() for t in leaves]
    u, *rest = leaves
    kernels, D = rest[-3:], rest[0] if case.skip else None
    options: dict[str, Any] = {"centers": case.grid if case.two_sided else 0, "backend": backend}
    out = long_conv_nd(u, kernels, D, precision="auto" if u.dtype == torch.float64 else "bf16", **options)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout.to(out.dtype))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64_and_repeats(case: Case) -> None:
    leaves = make(case)
    dout = torch.randn(case.batch, 1, case.features, *case.grid, device="cuda").to(case.dtype)
    got, again = (results(leaves, case, "triton", dout) for _ in range(2))
    expected = results([t.double() for t in leaves], case, "fft", dout)
    for value, repeated, wanted in zip(got, again, expected, strict=True):
        assert float((value.double() - wanted).norm() / wanted.norm()) <= TOLERANCE
        assert torch.equal(value, repeated)
    assert [t.dtype for t in got] == [case.dtype] * 2 + [torch.float32] * (len(got) - 2)


def test_strided_inputs() -> None:
    case = Case((9, 16, 20), batch=2, features=4)
    u, D, *kernels = make(case)
    dout = torch.randn(1, 1, 1, 1, 1, 1, device="cuda").bfloat16().expand(2, 1, 4, *case.grid)
    last = u.to(memory_format=torch.channels_last_3d)
    wide = [torch.stack((kernel, kernel), -1)[..., 0] for kernel in kernels]
    plain = results([u, D, *kernels], case, "triton", dout.contiguous())
    strided = results([last, D, *wide], case, "triton", dout)
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))


@pytest.mark.parametrize("frozen", ["u", "kernels"])
def test_gradients_of_some(frozen: str) -> None:
    case = Case((12, 10, 17), batch=2)
    u, D, *kernels = make(case)
    dout = torch.randn(2, 1, 3, *case.grid, device="cuda").bfloat16()
    _, du, d_skip, *d_kernels = results([u, D, *kernels], case, "triton", dout)
    wanted = [u] if frozen == "kernels" else kernels
    for t in wanted:
        t.requires_grad_()
    out = long_conv_nd(u, kernels, D, centers=case.grid, backend="triton")
    grads = torch.autograd.grad(out, wanted, dout)
    for found, expected in zip(grads, [du] if frozen == "kernels" else d_kernels, strict=True):
        torch.testing.assert_close(found, expected)
    assert d_skip.shape == D.shape


def test_chosen_for_bfloat16_volumes() -> None:
    request = ConvRequest("cuda:0", torch.bfloat16, (64, 64, 64), systems=32)
    assert choose(OP, request).name == "triton"
    wide = ConvRequest("cuda:0", torch.float32, (64, 64, 64), systems=32)
    assert choose(OP, wide).name == "toeplitz"
    assert choose(OP, replace(wide, precision="bf16")).name == "triton"
    assert choose(OP, request, "-triton").name == "toeplitz"


def test_opcheck() -> None:
    u, D, *kernels = (t.requires_grad_() for t in make(Case((6, 7, 8))))
    args = (u, [kernel[None, None] for kernel in kernels], [6, 7, 8], D[None], False, "auto", "triton")
    assert set(torch.library.opcheck(torch.ops.ssmvision.long_conv_nd.default, args).values()) == {"SUCCESS"}


def test_graph_capture() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        case = Case((16, 16, 16), batch=2)
        leaves, dout = make(case), torch.randn(2, 1, 3, 16, 16, 16, device="cuda")
        expected = [results(leaves, case, "triton", dout) for _ in range(3)][-1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = results(leaves, case, "triton", dout)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
