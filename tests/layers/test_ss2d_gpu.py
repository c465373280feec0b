"""SS2D on a GPU beside the same layer on the CPU, whichever kernels its numbers of states and routes take there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.layers.ss2d import SS2D

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
SCANS = ("cross", "one_way", "two_way", "cascade")


def results(layer: SS2D, x: Tensor) -> list[Tensor]:
    """Output, then the gradients of its weighted sum: of the input and of every parameter."""
    x = x.detach().requires_grad_()
    out = layer(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.device)
    gradients = torch.autograd.grad((out.float() * weights).sum(), [x, *layer.parameters()])
    return [t.detach().cpu() for t in (out, *gradients)]


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize(("d_state", "gate"), [(1, "none"), (1, "silu"), (4, "none"), (8, "linear"), (16, "silu")])
@pytest.mark.parametrize("size", [(1, 1), (7, 7), (13, 30)])
def test_as_on_the_cpu(scan: Any, d_state: int, gate: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = SS2D(32, d_state=d_state, scan=scan, gate=gate, init="normal")
    x = torch.randn(2, *size, 32)
    expected = results(layer, x)
    for got, wanted in zip(results(layer.to(DEVICE), x.to(DEVICE)), expected, strict=True):
        assert (got - wanted).abs().max() <= 1e-3 * wanted.abs().max() + 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scan", SCANS)
def test_autocast_is_near(scan: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer = SS2D(32, d_state=1, expand=1.0, scan=scan, gate="none")
    x = torch.randn(2, 14, 14, 32)
    expected = results(layer, x)[0]
    with torch.autocast(DEVICE, dtype=dtype):
        got = results(layer.to(DEVICE), x.to(DEVICE))
    assert got[0].dtype == dtype
    assert (got[0].float() - expected).abs().max() <= 0.03 * expected.abs().max()
    assert all(t.isfinite().all() for t in got)
