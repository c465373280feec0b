"""The channel means' CUDA backend on a GPU: against float64, bitwise repeatable, capturable, with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.channel_means import channel_means

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# FusionMamba's widths, odd and single channels, one position, channels beyond the registers.
SHAPES = [
    (2, 256, 256, 96),
    (2, 37, 50, 192),
    (1, 16, 16, 384),
    (2, 8, 8, 768),
    (3, 1, 1, 130),
    (2, 5, 7),
    (1, 9, 1),
    (1, 3, 4100),
]
TOLERANCE = {F32: 2e-6, BF16: 5e-3, F16: 6e-4}


def make(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    g = torch.Generator("cuda").manual_seed(0)
    # Away from 0, so that means are not rounding alone.
    offset = torch.randn(shape[-1], generator=g, device="cuda")
    return (torch.randn(*shape, generator=g, device="cuda") + offset).to(dtype).requires_grad_()


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().double() - exact.detach()).norm() / exact.detach().norm().clamp_min(1e-12))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = make(shape, dtype)
    wide = x.detach().double().requires_grad_()
    got, exact = channel_means(x, 1e-5, "cuda"), channel_means(wide, 1e-5, "reference")
    assert got.dtype == F32
    assert error(got, exact) <= TOLERANCE[F32]
    weights = torch.cos(torch.arange(exact.numel(), device="cuda", dtype=torch.float64)).view(exact.shape).float()
    found = torch.autograd.grad(got, x, weights)[0]
    assert error(found, torch.autograd.grad(exact, wide, weights.double())[0]) <= 3 * TOLERANCE[dtype]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_repeats_bitwise_and_in_a_graph(shape: tuple[int, ...]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        x = make(shape, BF16)
        first = channel_means(x)
        assert torch.equal(first, channel_means(x))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = channel_means(x)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(first, captured)
