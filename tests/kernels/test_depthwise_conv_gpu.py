"""The depthwise convolution's kernels on a GPU: against float64, in place on views, bitwise repeatable, capturable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.depthwise_conv import cuda, depthwise_conv2d, reference
from ssmvision.kernels.depthwise_conv.op import conv

pytestmark = pytest.mark.gpu

Case = tuple[int, int, int, int, int]
# B, H, W, C, side: VMamba's maps, one pixel, odd widths and channels, several strips, larger kernels.
CASES = [
    (4, 56, 56, 96, 3),
    (3, 7, 7, 768, 3),
    (2, 1, 1, 8, 3),
    (1, 5, 3, 7, 3),
    (2, 33, 20, 42, 3),
    (1, 300, 9, 32, 3),
    (2, 14, 9, 40, 5),
    (1, 9, 8, 12, 7),
    (2, 6, 6, 36, 1),
]
# Relative error by norm; rounding to bfloat16 alone costs about 1.7e-3, and the input's gradient is rounded twice.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}


def make(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """x, weight, bias and the gradient of the result."""
    batch, height, width, channels, side = case
    g = torch.Generator().manual_seed(0)
    shapes = ((batch, height, width, channels), (channels, side, side), (channels,), (batch, height, width, channels))
    kinds = (dtype, torch.float32, torch.float32, dtype)
    return [torch.randn(*shape, generator=g).to("cuda", kind) for shape, kind in zip(shapes, kinds, strict=True)]


def error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case: Case, dtype: torch.dtype) -> None:
    x, weight, bias, dout = make(case, dtype)
    for silu in (True, False):
        exact = (x.double(), weight.double(), bias.double(), silu)
        expected = (reference.forward(*exact), *reference.backward(*exact, dout.double()))
        got = (cuda.forward(x, weight, bias, silu), *cuda.backward(x, weight, bias, silu, dout))
        again = (cuda.forward(x, weight, bias, silu), *cuda.backward(x, weight, bias, silu, dout))
        for name, value, want, second in zip(("out", "dx", "dw", "db"), got, expected, again, strict=True):
            assert value is not None
            assert want is not None
            assert error(value, want) <= TOLERANCE[dtype], (name, silu, error(value, want))
            assert second is not None
            assert torch.equal(value, second), name


def test_views_and_absent_bias() -> None:
    weight = make((2, 13, 10, 24, 3), torch.bfloat16)[1]
    wide = torch.randn(2, 13, 10, 80, device="cuda").bfloat16()
    for view in (wide[..., 8:32], wide[..., 3:27], wide[:, ::2, :, :24], wide.permute(0, 2, 1, 3)[..., 24:48]):
        alone, given = view.contiguous(), torch.cos(torch.arange(view.numel(), device="cuda")).view(view.shape)
        assert torch.equal(cuda.forward(view, weight, None, True), cuda.forward(alone, weight, None, True))
        ours, theirs = (cuda.backward(t, weight, None, True, given) for t in (view, alone))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
        assert ours[2] is None


def test_operator_rules() -> None:
    x, weight, bias, _ = make((1, 5, 4, 8, 3), torch.float32)
    torch.library.opcheck(conv, (x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), True, "cuda"))


def test_captured_in_a_graph() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x, weight, bias, dout = make((2, 9, 11, 32, 3), torch.bfloat16)
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        want = torch.autograd.grad(depthwise_conv2d(*leaves), leaves, dout)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = torch.autograd.grad(depthwise_conv2d(*leaves), leaves, dout)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
