"""The convolution's CUDA backend on a GPU: against float64, in place on views, bitwise repeatable, capturable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.causal_conv import causal_conv, cuda, reference
from ssmvision.kernels.causal_conv.op import conv

pytestmark = pytest.mark.gpu

BOTH = ("forward", "backward")
Case = tuple[tuple[str, ...], int, int, int, int]
# routes, B, L, E, W: Vim's forms, one token, fewer tokens than taps, odd channels, one tap, many taps, more routes.
CASES = [
    (BOTH, 3, 197, 96, 4),
    (BOTH, 1, 1000, 768, 4),
    (("forward",), 2, 50, 64, 4),
    (("backward",), 2, 50, 64, 4),
    (BOTH, 2, 1, 8, 4),
    (BOTH, 2, 3, 7, 8),
    (("backward",), 2, 2, 6, 5),
    (BOTH, 2, 33, 10, 3),
    (BOTH, 2, 19, 12, 1),
    (("backward", "forward", "backward"), 2, 41, 20, 4),
    (BOTH, 5, 64, 130, 8),
]
# Relative error by norm; rounding a result to bfloat16 alone costs about 1.7e-3.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2.5e-3, torch.float16: 4e-4}


def make(case: Case, dtype: torch.dtype, wide_weights: bool) -> list[Tensor]:
    """x, weight, bias and the gradient of the result."""
    routes, batch, length, channels, taps = case
    g = torch.Generator().manual_seed(0)
    shapes = ((batch, length, channels), (len(routes), channels, taps), (len(routes), channels))
    tensors = [torch.randn(*shape, generator=g) for shape in (*shapes, (batch, len(routes), length, channels))]
    kinds = (dtype, *(torch.float32 if wide_weights else dtype,) * 2, dtype)
    return [t.to("cuda", kind) for t, kind in zip(tensors, kinds, strict=True)]


def error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm().clamp_min(1e-30))


def check(case: Case, dtype: torch.dtype, wide_weights: bool, silu: bool, has_bias: bool) -> None:
    """Result and gradients against the definition in float64."""
    x, weight, bias, dout = make(case, dtype, wide_weights)
    offset = bias if has_bias else None
    exact = (x.double(), weight.double(), None if offset is None else offset.double(), case[0], silu)
    expected = (reference.forward(*exact), *reference.backward(*exact, dout.double()))
    args = (x, weight, offset, case[0], silu)
    got = (cuda.forward(*args), *cuda.backward(*args, dout))
    for name, value, want in zip(("out", "dx", "dweight", "dbias"), got, expected, strict=True):
        if want is None:
            assert value is None
        else:
            assert value is not None
            assert value.shape == want.shape
            assert error(value, want) <= TOLERANCE[value.dtype], (name, error(value, want))


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case: Case, dtype: torch.dtype) -> None:
    check(case, dtype, wide_weights=True, silu=True, has_bias=True)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_options_match_float64(dtype: torch.dtype) -> None:
    """Weights of the tokens' dtype; no activation; no bias."""
    check(CASES[0], dtype, wide_weights=False, silu=True, has_bias=True)
    check(CASES[0], dtype, wide_weights=True, silu=False, has_bias=True)
    check(CASES[0], dtype, wide_weights=True, silu=True, has_bias=False)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("channels", [64, 66, 7])
def test_reads_and_writes_views_in_place(dtype: torch.dtype, channels: int) -> None:
    """The first half of a projection, its gradient's first half, and results that lie route by route."""
    x, weight, bias, dout = make((BOTH, 3, 37, channels, 4), dtype, True)
    both = torch.randn(3, 37, 2 * channels, device="cuda").to(dtype)
    both[..., :channels] = x
    view = both[..., :channels]
    apart = torch.full((2, 3, 37, channels), 7.0, device="cuda", dtype=dtype)
    cuda.forward(view, weight, bias, BOTH, True, out=apart.transpose(0, 1))
    assert torch.equal(apart.transpose(0, 1), cuda.forward(x, weight, bias, BOTH, True))

    grads = torch.full_like(both, 7.0)
    apart.copy_(dout.transpose(0, 1))
    got = cuda.backward(view, weight, bias, BOTH, True, apart.transpose(0, 1), dx=grads[..., :channels])
    expected = cuda.backward(x, weight, bias, BOTH, True, dout)
    assert torch.equal(grads[..., channels:], torch.full_like(x, 7.0))
    for value, want in zip((grads[..., :channels], *got[1:]), expected, strict=True):
        assert value is not None
        assert want is not None
        assert error(value, want.double()) <= TOLERANCE[dtype]


def test_transposed_and_misaligned_inputs() -> None:
    x, weight, bias, _ = make((BOTH, 2, 20, 8, 4), torch.bfloat16, True)
    expected = causal_conv(x, weight, bias, BOTH, backend="cuda")
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:].view(x.shape).copy_(x)
    for same in (x.transpose(1, 2).contiguous().transpose(1, 2), shifted):
        assert torch.equal(causal_conv(same, weight, bias, BOTH, backend="cuda"), expected)


def test_misaligned_weights() -> None:
    """Out of a flat buffer of many parameters, say."""
    x, weight, bias, dout = make((BOTH, 2, 20, 8, 4), torch.bfloat16, True)
    flat = torch.empty(weight.numel() + 1, device="cuda")[1:].view(weight.shape).copy_(weight)
    assert torch.equal(cuda.forward(x, flat, bias, BOTH, True), cuda.forward(x, weight, bias, BOTH, True))
    got = cuda.backward(x, flat, bias, BOTH, True, dout)
    assert torch.equal(got[1], cuda.backward(x, weight, bias, BOTH, True, dout)[1])


def test_results_that_cannot_be_written_in_place_are_refused() -> None:
    x, weight, bias, dout = make((BOTH, 2, 20, 8, 4), torch.bfloat16, True)
    with pytest.raises(ValueError, match="out must have stride 1 along E"):
        cuda.forward(x, weight, bias, BOTH, True, out=torch.empty(2, 2, 8, 20, device="cuda").transpose(2, 3))
    with pytest.raises(ValueError, match="dx must have stride 1 along E"):
        cuda.backward(x, weight, bias, BOTH, True, dout, dx=torch.empty(2, 8, 20, device="cuda").transpose(1, 2))


def test_gradients_of_an_expanded_result() -> None:
    """The gradient of a sum arrives with strides of zero."""
    x, weight, bias, _ = (t.requires_grad_() for t in make((BOTH, 2, 20, 8, 4), torch.float32, True))
    got = torch.autograd.grad(causal_conv(x, weight, bias, BOTH, backend="cuda").sum(), (x, weight, bias))
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = torch.autograd.grad(causal_conv(exact[0], exact[1], exact[2], BOTH).sum(), exact)
    for value, want in zip(got, expected, strict=True):
        assert error(value, want) <= TOLERANCE[torch.float32]


def test_two_runs_are_bitwise_equal() -> None:
    x, weight, bias, dout = make((BOTH, 4, 500, 96, 4), torch.bfloat16, True)
    first, second = (
        (cuda.forward(x, weight, bias, BOTH, True), *cuda.backward(x, weight, bias, BOTH, True, dout)) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


def test_opcheck() -> None:
    x, weight, bias, _ = make((BOTH, 2, 9, 8, 4), torch.float32, True)
    leaves = tuple(t.requires_grad_() for t in (x, weight, bias))
    args = (*leaves, ",".join(BOTH), True, "cuda")
    assert set(torch.library.opcheck(conv, args).values()) == {"SUCCESS"}


def test_graph_capture() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x, weight, bias, dout = make((BOTH, 2, 70, 32, 4), torch.bfloat16, True)
        leaves = [t.requires_grad_() for t in (x, weight, bias)]

        def step() -> tuple[Tensor, ...]:
            out = causal_conv(x, weight, bias, BOTH, backend="cuda")
            return out, *torch.autograd.grad(out, leaves, dout)

        expected = [step() for _ in range(3)][-1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
