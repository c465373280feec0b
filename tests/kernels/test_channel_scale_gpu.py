"""The channel scale's CUDA backend on a GPU: against float64, bitwise repeatable, with gradients, any width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.channel_scale import scale_channels

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# FusionMamba's widths, pairs, odd and single channels, one position, many images.
SHAPES = [(2, 256, 256, 96), (1, 37, 50, 192), (2, 8, 8, 768), (3, 1, 1, 130), (2, 5, 7), (1, 9, 1), (300, 2, 12)]
DTYPES = [(F32, F32), (BF16, F32), (BF16, BF16), (F16, F32), (F16, F16), (F32, BF16)]
TOLERANCE = {F32: 1e-6, BF16: 5e-3, F16: 6e-4}


def make(shape: tuple[int, ...], maps: int, dtypes: tuple[torch.dtype, torch.dtype]) -> list[Tensor]:
    g = torch.Generator("cuda").manual_seed(0)
    tensors = [torch.randn(*shape, generator=g, device="cuda").to(dtypes[0]) for _ in range(maps)]
    weights = torch.randn(shape[0], maps, shape[-1], generator=g, device="cuda").to(dtypes[1])
    return [t.requires_grad_() for t in (*tensors, weights)]


def results(leaves: list[Tensor], backend: str) -> list[Tensor]:
    out = scale_channels(*leaves[:-1], weights=leaves[-1], backend=backend)
    at = torch.arange(out.numel(), device="cuda", dtype=torch.float64).view(out.shape)
    # Eighths, which every dtype holds, so that all backends get the same gradients.
    return [out, *torch.autograd.grad(out, leaves, torch.cos(at).mul(8).round().div(8).to(out.dtype))]


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("maps", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, ...], maps: int, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    leaves = make(shape, maps, dtypes)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    for found, exact in zip(results(leaves, "cuda"), results(wide, "reference"), strict=True):
        tolerance = TOLERANCE[max(dtypes, key=lambda d: TOLERANCE[d])]
        assert float((found.double() - exact).norm() / exact.norm().clamp_min(1e-12)) <= tolerance


def test_repeats_bitwise_whatever_the_layout() -> None:
    *maps, weights = (t.detach() for t in make((2, 6, 5, 24), 2, (BF16, F32)))
    first = scale_channels(*maps, weights=weights)
    strided = [t.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0) for t in maps]
    assert torch.equal(first, scale_channels(*maps, weights=weights))
    assert torch.equal(first, scale_channels(*strided, weights=weights))
    unaligned = torch.empty(weights.numel() + 1, device="cuda")[1:].view(weights.shape).copy_(weights)
    assert torch.equal(first, scale_channels(*maps, weights=unaligned))
