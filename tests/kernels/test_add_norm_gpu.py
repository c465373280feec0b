"""The fused norms' CUDA backend on a GPU: against float64, bitwise repeatable, capturable, and inside Vim's block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.add_norm import add_layer_norm, add_rms_norm
from ssmvision.kernels.add_norm.op import add_norm
from ssmvision.layers.norm import LayerNorm, RMSNorm
from ssmvision.layers.residual_mamba import ResidualMambaBlock

pytestmark = pytest.mark.gpu

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Shapes: Vim's widths, one channel, odd, pairs only, several warps a row, the widest.
SHAPES = [
    (2, 197, 192),
    (5, 13, 96),
    (7, 3, 20),
    (2, 50, 384),
    (3, 9, 768),
    (5, 1),
    (4, 3, 7),
    (3, 130),
    (70, 1026),
    (9, 4095),
    (9, 4096),
    (2, 6000),
]
# hidden, residual (None for none), weight, normed, new residual.
DTYPES = [
    (F32, F32, F32, F32, F32),
    (BF16, F32, F32, BF16, F32),
    (F16, F32, F32, F16, F32),
    (BF16, None, F32, BF16, F32),
    (F32, None, F32, BF16, F32),
    (F32, None, F32, F32, F32),
    (BF16, BF16, BF16, BF16, BF16),
    (F16, F16, F16, F32, F32),
]
TOLERANCE = {F32: 2e-6, BF16: 2.5e-3, F16: 4e-4}


def make(
    shape: tuple[int, ...], hidden: torch.dtype, residual: torch.dtype | None, weight: torch.dtype
) -> list[Tensor | None]:
    g = torch.Generator().manual_seed(0)
    shapes = (shape, shape, shape[-1:])
    h, r, w = (torch.randn(*s, generator=g).to("cuda") for s in shapes)
    tensors = (h.to(hidden), None if residual is None else r.to(residual), w.to(weight))
    return [None if t is None else t.requires_grad_() for t in tensors]


NAMES = ("d_hidden", "d_residual", "d_weight", "d_bias")


def results(tensors: list[Tensor | None], out: torch.dtype, stream: torch.dtype, backend: str) -> dict[str, Tensor]:
    """Both results, and gradients of a loss that weighs every element of both differently.

    Of the layer norm where there is a fourth tensor, the bias.
    """
    hidden, residual, weight = tensors[:3]
    assert hidden is not None
    assert weight is not None
    if len(tensors) == 4:
        normed, total = add_layer_norm(hidden, residual, weight, tensors[3], 1e-5, out, stream, backend)
    else:
        normed, total = add_rms_norm(hidden, residual, weight, 1e-5, out, stream, backend)
    loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for i, t in enumerate((normed, total)):
        at = torch.arange(t.numel(), device=t.device, dtype=torch.float64).view(t.shape)
        # Eighths, which every dtype holds, so that all backends get the same gradients.
        loss = loss + (t.double() * torch.cos(at + i).mul(8).round().div(8)).sum()
    leaves = {n: t for n, t in zip(NAMES, tensors, strict=False) if t is not None}
    return {
        "normed": normed,
        "total": total,
        **dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)),
    }


@pytest.mark.parametrize("norm", ["rms", "layer", "layer without bias"])
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], norm: str) -> None:
    hidden, residual, weight, out, stream = dtypes
    tensors = make(shape, hidden, residual, weight)
    if norm != "rms":
        assert tensors[2] is not None
        tensors.append(tensors[2].detach().sin().requires_grad_() if norm == "layer" else None)
    wide = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    got = results(tensors, out, stream, "cuda")
    expected = results(wide, torch.float64, torch.float64, "reference")
    # A stream that is itself rounded moves everything computed from it by a rounding of its dtype.
    floor = 3 * TOLERANCE[stream] if stream != F32 else 0.0
    for name, value in got.items():
        want = expected[name]
        # With one channel the gradients of hidden cancel to zero: compare against the size of a gradient.
        scale = max(want.norm().item(), want.numel() ** 0.5 * 0.5)
        error = (value.double() - want).norm().item() / scale
        assert error <= max(TOLERANCE[value.dtype], floor), (name, error)


def test_result_that_is_unused_costs_no_gradient() -> None:
    hidden, residual, weight = make((2, 9, 64), BF16, F32, F32)
    assert hidden is not None
    assert residual is not None
    assert weight is not None
    normed, total = add_rms_norm(hidden, residual, weight)
    for loss, expected_weight in ((normed.float().sum(), True), (total.sum(), False)):
        grads = torch.autograd.grad(loss, (hidden, residual, weight), allow_unused=True, retain_graph=True)
        assert (grads[2] is not None) == expected_weight
        assert grads[0].dtype == BF16
        assert grads[1].dtype == F32


def test_autocast_gives_its_dtype() -> None:
    hidden, residual, weight = make((2, 9, 64), BF16, F32, F32)
    assert hidden is not None
    assert weight is not None
    with torch.autocast("cuda", dtype=F16):
        assert add_rms_norm(hidden, residual, weight)[0].dtype == F16
    assert add_rms_norm(hidden, residual, weight)[0].dtype == F32


def test_two_runs_are_bitwise_equal() -> None:
    for extra in ([], [None]):
        first, second = (results(make((5000, 384), BF16, F32, F32) + extra, BF16, F32, "cuda") for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_layer_norm_far_from_zero() -> None:
    """The variance of values around 1000 does not cancel; their mean alone is rounded by 3e-5 in float32."""
    x = (torch.randn(50, 96, generator=torch.Generator().manual_seed(0)) + 1000).cuda().requires_grad_()
    norm = LayerNorm(96).cuda()
    got, want = norm(x), torch.nn.functional.layer_norm(x.double(), (96,))
    assert (got.double() - want).norm() <= 1e-4 * want.norm()
    grads = [torch.autograd.grad((y.double() * torch.cos(want.detach())).sum(), x)[0] for y in (got, want)]
    assert (grads[0] - grads[1]).norm() <= 1e-4 * grads[1].norm()


@pytest.mark.parametrize("residual", [F32, None])
def test_opcheck(residual: torch.dtype | None) -> None:
    tensors = make((2, 9, 40), F32, residual, F32)
    for centered in (False, True):
        args = (*tensors, tensors[2] if centered else None, centered, 1e-5, F32, F32, "cuda")
        assert set(torch.library.opcheck(add_norm, args).values()) == {"SUCCESS"}


def test_graph_capture() -> None:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensors = make((3, 40, 384), BF16, F32, F32)
        expected = [results(tensors, BF16, F32, "cuda") for _ in range(3)][-1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = results(tensors, BF16, F32, "cuda")
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(captured[name], expected[name]) for name in captured)


@pytest.mark.parametrize("in_fp32", [True, False])
def test_block_on_a_gpu_equals_the_block_on_a_cpu(in_fp32: bool) -> None:
    """The fused norm inside Vim's block, first block and later ones, with gradients."""
    torch.manual_seed(0)
    block = ResidualMambaBlock(32, RMSNorm(32, eps=1e-5), {"bidirectional": True}, residual_in_fp32=in_fp32)
    hidden, residual = torch.randn(2, 20, 32), torch.randn(2, 20, 32)
    for stream in (None, residual):
        values = []
        for device in ("cpu", "cuda"):
            block.to(device).zero_grad()
            h = hidden.detach().to(device, copy=True).requires_grad_()
            out, total = block(h, None if stream is None else stream.to(device))
            (out.sin().sum() + total.cos().sum()).backward()
            values.append([t.detach().cpu() for t in (out, total, h.grad, block.norm.weight.grad)])
        for there, here in zip(*values, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_block_under_autocast(dtype: torch.dtype) -> None:
    """The norm hands the mixer autocast's dtype; alone it keeps to the weight's."""
    torch.manual_seed(0)
    block = ResidualMambaBlock(32, RMSNorm(32, eps=1e-5), {}).cuda()
    seen: list[torch.dtype] = []
    block.mixer.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    x = torch.randn(2, 20, 32, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        out, residual = block(x)
        block(out, residual)
        assert block.norm(x).dtype == F32
    assert seen == [dtype, dtype]
    assert residual.dtype == F32
