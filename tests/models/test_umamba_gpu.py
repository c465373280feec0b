"""U-Mamba's layer on a CUDA device: its own operator against the layers in float64, in both memory formats."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.layers.mamba_layer import MambaLayer

pytestmark = pytest.mark.gpu

# Many segments of a long sequence; channels that no vector load fits; a rank that is padded.
SHAPES = [(2, 32, 8, 24, 24), (1, 7, 3, 5, 9), (3, 64, 4, 10, 6)]


def _results(layer: Any, x: Tensor, g: Tensor) -> list[Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], g.to(out))]


def _worst(found: list[Tensor], exact: list[Tensor]) -> float:
    return max(float((f.double().cpu() - e.cpu()).norm() / e.cpu().norm()) for f, e in zip(found, exact, strict=True))


@pytest.mark.parametrize("mixer", ["mamba", "mamba_bidirectional"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_large_maps_are_mixed_as_small_ones(shape: tuple[int, ...], mixer: str) -> None:
    torch.manual_seed(0)
    layer: Any = MambaLayer(shape[1], mixer=mixer).cuda()
    x, g = torch.randn(2, *shape, device="cuda").unbind(0)
    exact = _results(copy.deepcopy(layer).double().cpu(), x.double().cpu(), g.cpu())
    for layer.recompute in (False, True):
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            given = x.contiguous(memory_format=memory_format)
            found = _results(layer, given, g)
            assert _worst(found, exact) < 2e-5
            assert found[0].is_contiguous(memory_format=memory_format)
    assert all(torch.equal(a, b) for a, b in zip(_results(layer, x, g), _results(layer, x, g), strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_low_precision_maps(autocast: bool) -> None:
    torch.manual_seed(0)
    layer: Any = MambaLayer(32, recompute=True, autocast=autocast).cuda()
    x, g = torch.randn(2, 2, 32, 6, 20, 18, device="cuda").bfloat16().unbind(0)
    exact = _results(copy.deepcopy(layer).double().cpu(), x.double().cpu(), g.cpu())
    with torch.autocast("cuda", torch.bfloat16):
        found = _results(layer, x, g)
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    assert _worst(found, exact) < (2e-2 if autocast else 4e-3)
