"""The sub-grids' CUDA backend on a GPU: against float64, bitwise repeatable, capturable, with gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.subgrids import subgrid_conv, subgrid_norm

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Batch, height, width, channels: FusionMamba's widths, odd sizes, odd and single channels, one position.
SHAPES = [
    (2, 16, 16, 768),
    (1, 9, 22, 192),
    (2, 5, 7, 1536),
    (1, 33, 1, 384),
    (3, 1, 1, 130),
    (2, 6, 5, 7),
    (1, 3, 4, 1),
]
DTYPES = [(F32, F32), (BF16, F32), (BF16, BF16), (F16, F32), (F16, F16)]
TOLERANCE = {F32: 3e-6, BF16: 5e-3, F16: 6e-4}


def tensors(shape: tuple[int, int, int, int], dtype: torch.dtype, weights: torch.dtype) -> list[Tensor]:
    """Map and gate as halves of a projection, sub-grids, convolution and norm weights."""
    batch, height, width, channels = shape
    g = torch.Generator("cuda").manual_seed(0)
    both, y, taps, bias, scale, shift = (
        torch.randn(*s, generator=g, device="cuda")
        for s in (
            (batch, height, width, 2 * channels),
            (4, batch, (height + 1) // 2, (width + 1) // 2, channels),
            (channels, 1, 3, 3),
            *[(channels,)] * 3,
        )
    )
    x, gate = both.to(dtype).chunk(2, -1)
    return [x, gate, y.to(dtype).transpose(0, 1), *(t.to(weights) for t in (taps, bias, scale, shift))]


def results(inputs: list[Tensor], backend: str) -> dict[str, Tensor]:
    """Both results and all gradients of a sum that weighs every element differently."""
    x, gate, y, taps, bias, scale, shift = (t.detach().requires_grad_() for t in inputs)
    out = {
        "conv": subgrid_conv(x, taps, bias, backend),
        "norm": subgrid_norm(y, gate, scale, shift, 1e-5, True, backend),
        "product": subgrid_norm(y, gate, scale, shift, 1e-5, False, backend),
    }
    loss = torch.zeros((), dtype=torch.float64, device="cuda")
    for t in out.values():
        # Eighths, which every dtype holds, so that all backends get the same gradients; positive, so that sums of
        # them over a few positions do not cancel.
        at = torch.arange(t.numel(), device="cuda", dtype=torch.float64).view(t.shape)
        loss = loss + (t.double() * (1.5 + torch.cos(at)).mul(8).round().div(8)).sum()
    leaves = {"x": x, "gate": gate, "y": y, "taps": taps, "bias": bias, "scale": scale, "shift": shift}
    grads = torch.autograd.grad(loss, list(leaves.values()))
    return {**out, **{f"d_{name}": g for name, g in zip(leaves, grads, strict=True)}}


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, int, int, int], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    inputs = tensors(shape, *dtypes)
    with torch.backends.cudnn.flags(allow_tf32=False):
        got, expected = results(inputs, "cuda"), results([t.double() for t in inputs], "reference")
    worst = {}
    for name, exact in expected.items():
        tolerance = TOLERANCE[dtypes[0]] * (1 if name in ("conv", "norm", "product") else 4)
        error = float((got[name].detach().double() - exact.detach()).norm() / exact.norm().clamp_min(1e-12))
        if not error <= tolerance:
            worst[name] = error
    assert not worst


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_repeats_bitwise_and_in_a_graph(shape: tuple[int, int, int, int]) -> None:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        x, gate, y, taps, bias, scale, shift = tensors(shape, BF16, F32)

        def run() -> tuple[Tensor, Tensor]:
            return subgrid_conv(x, taps, bias, "cuda"), subgrid_norm(y, gate, scale, shift, backend="cuda")

        first = run()
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = run()
        graph.replay()
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(first, captured, strict=True))


def test_layouts_that_are_not_dense() -> None:
    x, gate, y, taps, bias, scale, shift = tensors((2, 6, 5, 8), F32, F32)
    strided = x.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert torch.equal(subgrid_conv(strided, taps, bias), subgrid_conv(x, taps, bias))
    apart = y.permute(4, 2, 3, 0, 1).contiguous().permute(3, 4, 1, 2, 0)
    assert torch.equal(subgrid_norm(apart, gate, scale, shift), subgrid_norm(y.contiguous(), gate, scale, shift))
