"""The scanning mixers and the references on a GPU: as on the CPU, under autocast, compiled and in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ssmvision.layers.mixers import build_mixer

pytestmark = pytest.mark.gpu

NAMES = ("s6", "ssd", "vssd", "hgrn", "biwkv", "attention", "window_attention", "dwconv")
GRIDS = ((67,), (13, 21), (5, 6, 7))
DIM = 32


def build(name: str, grid: tuple[int, ...] = (13, 21), device: str = "cuda") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return build_mixer(name, DIM, len(grid)).to(device), torch.randn(2, *grid, DIM).to(device)


def results(mixer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, then the gradients of the weighted sum of its exponentials: of the input and of every parameter.

    In gradients of a plain weighted sum, ssd's of D above all, terms of both signs cancel, and rounding decides.
    """
    x = x.detach().requires_grad_()
    y = mixer(x)
    weights = torch.linspace(0, 1, y.numel(), device=y.device).view(y.shape)
    return [y, *torch.autograd.grad((y.float().exp() * weights).sum(), [x, *mixer.parameters()])]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_as_on_the_cpu(name: str, grid: tuple[int, ...]) -> None:
    mixer, x = build(name, grid, "cpu")
    expected = results(mixer, x)
    for ours, wanted in zip(results(mixer.cuda(), x.cuda()), expected, strict=True):
        assert (ours.cpu() - wanted).abs().max() <= 2e-3 * wanted.abs().max() + 1e-5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_follows_single_precision(name: str, dtype: torch.dtype) -> None:
    mixer, x = build(name)
    expected = results(mixer, x)
    with torch.autocast("cuda", dtype):
        found = results(mixer, x)
    for ours, wanted in zip(found, expected, strict=True):
        assert ours.isfinite().all()
        assert (ours - wanted).norm() <= 0.08 * wanted.norm() + 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_in_a_cuda_graph(name: str) -> None:
    mixer, x = build(name)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.autocast("cuda", torch.bfloat16):
        expected = results(mixer, x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.autocast("cuda", torch.bfloat16):
        found = results(mixer, x)
    graph.replay()
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_compiled(name: str) -> None:
    mixer, x = build(name)
    expected = results(mixer, x)
    for ours, wanted in zip(results(torch.compile(mixer, fullgraph=True), x), expected, strict=True):  # type: ignore[arg-type]
        assert (ours - wanted).abs().max() <= 2e-3 * wanted.abs().max() + 1e-5
