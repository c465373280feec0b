"""The Triton kernels of branches and of S4's taps on a GPU: against float64, bitwise repeatable, capturable."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.branch import add_branch, norm_map
from ssmvision.kernels.s4nd.dplr_op import dplr_taps, s4_taps
from ssmvision.kernels.s4nd.modes_op import modes_taps
from ssmvision.kernels.s4nd.pairs import Pair
from ssmvision.layers.s4nd_blocks import S4NDBlock

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def results(call: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in leaves]
    y = call(*leaves)
    weight = torch.randn(y.shape, generator=torch.Generator("cuda").manual_seed(1), device="cuda").to(y.dtype)
    return [y, *torch.autograd.grad(y, leaves, weight)]


def compare(call: Callable[..., Tensor], exact: Callable[..., Tensor], leaves: list[Tensor], bound: float) -> None:
    got, again = results(call, leaves), results(call, leaves)
    for value, repeated, expected in zip(got, again, results(exact, [t.double() for t in leaves]), strict=True):
        assert torch.equal(value, repeated)
        assert (value.double() - expected).norm() <= bound * expected.norm()


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + len(shape))
    return torch.randn(*shape, generator=generator, device="cuda").to(dtype)


SHAPES = [(2, 96, 56, 56), (3, 384, 14, 14), (5, 768, 7, 7), (2, 33, 1, 1), (1, 2048, 3, 5)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestBranch:
    def test_norm(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        leaves = [rand(*shape, dtype=dtype) + 1, rand(shape[1]), rand(shape[1], seed=1)]
        for last in (True, False):
            options = (1e-6, last, dtype)
            compare(
                lambda *t, o=options: norm_map(*t, *o, backend="triton"),
                lambda *t, o=last: norm_map(*t, 1e-6, o, torch.float64, backend="reference"),
                leaves,
                TOLERANCE[dtype],
            )

    def test_sum(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        batch, channels, *grid = shape
        leaves = [rand(*shape), rand(batch, *grid, channels, dtype=dtype), rand(channels)]
        keep = rand(batch).abs()

        def call(x: Tensor, tokens: Tensor, gamma: Tensor) -> Tensor:
            total, copy = add_branch(x, tokens, gamma, keep, dtype)
            assert copy is not None
            return total + copy

        compare(call, lambda x, tokens, gamma: 2 * add_branch(x, tokens, gamma, keep)[0], leaves, TOLERANCE[dtype])


@pytest.mark.parametrize("modes", [32, 5])
def test_modes(modes: int) -> None:
    z_re, z_im = -rand(4, 6, modes).abs() / 4, rand(4, 6, modes, seed=1) / 4
    leaves = [z_re, z_im, rand(4, 2, 6, modes), rand(4, 2, 6, modes, seed=1)]

    def call(backend: str) -> Callable[..., Tensor]:
        return lambda a, b, c, d: modes_taps(Pair(a, b), Pair(c, d), 100, backend)

    compare(call("triton"), call("reference"), leaves, 1e-4)


@pytest.mark.parametrize(("features", "systems", "nodes", "length"), [(96, 1, 56, 56), (6, 3, 7, 7), (4, 4, 200, 150)])
def test_taps(features: int, systems: int, nodes: int, length: int) -> None:
    pairs = (4, systems, 32)
    leaves = [
        rand(4, features, 1).abs() * 0.3 + 0.1,
        -rand(*pairs).abs() - 0.3,
        -5 * rand(*pairs, seed=1).abs(),
        rand(*pairs, 2),
        rand(4, 2, features, 32, 2),
        rand(*pairs, 2, seed=1) / 2,
    ]
    compare(
        lambda *t: dplr_taps(*t, nodes, length, backend="triton"),
        lambda *t: dplr_taps(*t, nodes, length),
        leaves,
        1e-3,
    )


def test_the_operator_of_the_taps_keeps_its_contract() -> None:
    shapes = ((2, 4, 1), (2, 2, 3), (2, 2, 3), (2, 2, 3, 2), (2, 1, 4, 3, 2), (2, 2, 3, 2))
    dt, real, imag, *pairs = (rand(*shape) for shape in shapes)
    systems = [t.requires_grad_() for t in (dt.abs() + 0.1, -real.abs() - 0.1, imag, *pairs)]
    torch.library.opcheck(s4_taps.operator, (*systems, 7, 7))


def test_a_block_is_captured() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.manual_seed(0)
        options = {"kernel": "s4", "init": "fourier", "n_ssm": 1, "dt_min": 0.1, "dt_max": 1.0}
        block = S4NDBlock(32, (14, 14), options, init_scale=1.0, device="cuda")
        x, leaves = rand(4, 32, 14, 14), [p for p in block.parameters() if p.requires_grad]

        def step() -> tuple[Tensor, ...]:
            with torch.autocast("cuda", torch.bfloat16):
                y = block(x)
            return y, *torch.autograd.grad(y.square().sum(), leaves)

        expected = [step() for _ in range(3)][-1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
