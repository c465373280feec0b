"""The chunked SSD on a GPU beside the same on the CPU in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.ssd import ssd_nd

pytestmark = pytest.mark.gpu

ROUTES = ("row", "column_reverse", "skip_odd_even")


def operands(dtype: torch.dtype) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, B, C = (torch.randn(shape, generator=draw) for shape in ((2, 13, 21, 4, 16), *((2, 3, 13, 21, 2, 8),) * 2))
    delta, A, D = (torch.rand(shape, generator=draw) for shape in ((2, 3, 13, 21, 4), (3, 4), (3, 4)))
    return [t.to(dtype).requires_grad_() for t in (x, delta, -A - 0.1, B, C, D)]


def results(tensors: list[Tensor]) -> list[Tensor]:
    y = ssd_nd(*tensors, routes=ROUTES)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    return [y, *torch.autograd.grad(y, tensors, weights)]


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
def test_as_on_the_cpu(dtype: torch.dtype, close: float) -> None:
    low = operands(dtype)
    found = results([t.detach().cuda().requires_grad_() for t in low])
    for ours, wanted in zip(found, results([t.detach().double().requires_grad_() for t in low]), strict=True):
        assert ours.dtype == dtype
        assert (ours.cpu().double() - wanted).abs().max() <= close * wanted.abs().max()


def test_in_a_cuda_graph() -> None:
    tensors = [t.detach().cuda().requires_grad_() for t in operands(torch.float32)]
    side = torch.cuda.Stream()  # leaves that were used on the default stream would keep it, and it cannot be recorded
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = results(tensors)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = results(tensors)
    graph.replay()
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted)
