"""The convolution without a GPU: against torch's conv1d, gradients in float64, checks, sources that compile."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.causal_conv import causal_conv, config, cuda_programs, reference
from ssmvision.kernels.causal_conv.interface import MAX_TAPS
from ssmvision.kernels.causal_conv.op import conv
from ssmvision.kernels.cuda import programs
from ssmvision.kernels.cuda.compiler import compile_cubin
from ssmvision.layers.mamba import MambaMixer

BOTH = ("forward", "backward")
CSRC = files("ssmvision.kernels.causal_conv").joinpath("csrc")
PROGRAMS = [program for program in programs() if program.spec.package == "ssmvision.kernels.causal_conv"]


def make(length: int, taps: int, routes: int, channels: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(length * 10 + taps)
    shapes = ((2, length, channels), (routes, channels, taps), (routes, channels))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, routes: tuple[str, ...], silu: bool) -> Tensor:
    """By torch's own convolution, the backward direction on the flipped sequence."""
    results = []
    for k, route in enumerate(routes):
        line = x.flip(1) if route == "backward" else x
        padded = F.pad(line.transpose(1, 2), (weight.shape[-1] - 1, 0))
        y = F.conv1d(padded, weight[k].unsqueeze(1), None if bias is None else bias[k], groups=x.shape[-1])
        y = (F.silu(y) if silu else y).transpose(1, 2)
        results.append(y.flip(1) if route == "backward" else y)
    return torch.stack(results, 1)


@pytest.mark.parametrize("routes", [("forward",), ("backward",), BOTH, ("backward", "forward", "backward")], ids=str)
@pytest.mark.parametrize(("length", "taps"), [(1, 1), (1, 4), (3, 8), (9, 1), (9, 4), (20, 3), (20, MAX_TAPS)])
def test_equals_conv1d_with_gradients(length: int, taps: int, routes: tuple[str, ...]) -> None:
    for silu, has_bias in product((True, False), (True, False)):
        tensors = [t.requires_grad_() for t in make(length, taps, len(routes))]
        x, weight, bias = tensors
        leaves = tensors if has_bias else tensors[:2]
        offset = bias if has_bias else None
        got = causal_conv(x, weight, offset, routes, "silu" if silu else "none")
        want = expected(x, weight, offset, routes, silu)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        weights = torch.cos(torch.arange(got.numel(), dtype=got.dtype)).view(got.shape)
        for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (got, want)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradcheck() -> None:
    leaves = tuple(t.requires_grad_() for t in make(6, 4, 2, channels=2))
    assert torch.autograd.gradcheck(lambda *a: causal_conv(*a, BOTH), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = make(30, 4, 2, dtype=dtype)
    got = causal_conv(x, weight, bias, BOTH)
    want = expected(x.double(), weight.double(), bias.double(), BOTH, True)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_equals_the_mixers_own_convolution() -> None:
    torch.manual_seed(0)
    mixer = MambaMixer(12, bidirectional=True).double()
    x = torch.randn(2, 9, mixer.d_inner, dtype=torch.float64)
    weight = torch.stack([mixer.conv1d.weight, mixer.conv1d_b.weight]).squeeze(2)  # type: ignore[list-item, union-attr]
    bias = torch.stack([mixer.conv1d.bias, mixer.conv1d_b.bias])  # type: ignore[list-item, union-attr]
    want = []
    for conv1d, flip in ((mixer.conv1d, False), (mixer.conv1d_b, True)):
        line = (x.flip(1) if flip else x).transpose(1, 2)
        y = F.silu(conv1d(line)[..., : x.shape[1]]).transpose(1, 2)  # type: ignore[operator]
        want.append(y.flip(1) if flip else y)
    torch.testing.assert_close(causal_conv(x, weight, bias, BOTH), torch.stack(want, 1))


def test_plain_functions_write_into_views() -> None:
    """The first half of a buffer, and results that lie route by route."""
    x, weight, bias = make(9, 4, 2)
    whole = torch.full((2, 9, 10), 7.0, dtype=x.dtype)
    apart = torch.full((2, 2, 9, 5), 7.0, dtype=x.dtype)
    reference.forward(x, weight, bias, BOTH, True, out=apart.transpose(0, 1))
    assert torch.equal(apart.transpose(0, 1), reference.forward(x, weight, bias, BOTH, True))
    dout = torch.randn_like(apart).transpose(0, 1)
    dx, *_ = reference.backward(x, weight, bias, BOTH, True, dout, dx=whole[..., :5])
    assert dx.data_ptr() == whole.data_ptr()
    assert torch.equal(whole[..., :5], reference.backward(x, weight, bias, BOTH, True, dout)[0])
    assert torch.equal(whole[..., 5:], torch.full_like(x, 7.0))
    grads = reference.backward(x, weight.bfloat16(), bias, BOTH, True, dout)
    assert [t.dtype for t in grads if t is not None] == [x.dtype, torch.bfloat16, bias.dtype]


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_nothing_to_convolve(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    weight = torch.randn(2, 3, 4, requires_grad=True)
    out = causal_conv(x, weight, None, BOTH)
    out.sum().backward()
    assert out.shape == (shape[0], 2, *shape[1:])
    assert x.grad is not None
    assert weight.grad is not None
    assert not weight.grad.any()


def test_opcheck() -> None:
    leaves = [t.requires_grad_() for t in make(9, 4, 2, dtype=torch.float32)]
    for bias in (leaves[2], None):
        assert set(torch.library.opcheck(conv, (*leaves[:2], bias, "forward,backward", True, "auto")).values()) == {
            "SUCCESS"
        }


def test_compiles_into_one_graph() -> None:
    leaves = [t.requires_grad_() for t in make(9, 4, 2)]
    compiled = torch.compile(lambda *a: causal_conv(*a, BOTH), backend="aot_eager", fullgraph=True)
    values = [(y, *torch.autograd.grad(y.sin().sum(), leaves)) for y in (compiled(*leaves), causal_conv(*leaves, BOTH))]
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"x must be \(B, L, E\), got \(2, 5\)"),
        ({"weight": torch.zeros(1, 5, 4)}, r"weight must have shape \(2, 5, W\).*got \(1, 5, 4\)"),
        ({"weight": torch.zeros(2, 5, 9)}, "W from 1 to 8"),
        ({"bias": torch.zeros(2, 4)}, r"bias must have shape \(2, 5\).*got \(2, 4\)"),
        ({"routes": ("forward", "up")}, "unknown route 'up'"),
        ({"activation": "relu"}, "activation must be 'silu' or 'none', got 'relu'"),
        ({"backend": "cuda"}, "cpu is not a CUDA device"),
        ({"bias": torch.zeros(2, 5, device="meta")}, "bias is on meta but x is on cpu"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    x, weight, bias = make(9, 4, 2)
    args: dict[str, Any] = {"x": x, "weight": weight, "bias": bias, "routes": BOTH}
    with pytest.raises((ValueError, RuntimeError), match=message):
        causal_conv(**args | change)
    with pytest.raises(TypeError, match="weight must be a real floating-point tensor"):
        causal_conv(x, weight.long(), bias, BOTH)


def test_second_derivative_is_refused() -> None:
    x, weight, bias = (t.requires_grad_() for t in make(9, 4, 2))
    (grad,) = torch.autograd.grad(causal_conv(x, weight, bias, BOTH).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(("routes", "taps", "channels"), [(1, 1, 1), (2, 8, 1), (3, 5, 2), (1, 3, 2)])
def test_unusual_variants_compile(routes: int, taps: int, channels: int) -> None:
    """What `causal_conv` compiles when it is asked for."""
    defines = {"IO": 2, "WIO": 0, "K": routes, "REVERSE": 2, "W": taps, "V": channels, "SILU": 0}
    for program in PROGRAMS:
        source = program.source
        options = [f"-D{key}={value}" for key, value in defines.items()]
        compile_cubin(source.text, name=source.name, arch="sm_90", options=options, headers=source.headers)


@pytest.mark.parametrize("structure", ["Rows", "Conv"])
def test_parameter_blocks_have_the_fields_of_the_source(structure: str) -> None:
    """Same names in the same order: a field that is missing on one side would shift all that follow."""
    match = re.search(rf"struct {structure} {{(.*?)\n}};", CSRC.joinpath("common.cuh").read_text(), re.DOTALL)
    assert match is not None
    body = re.sub(r"//.*", "", match[1])
    declared = [part.split()[-1].strip("*") for line in body.split(";") for part in line.split(",") if part.strip()]
    assert declared == [field[0] for field in getattr(cuda_programs, structure)._fields_]


def test_constants_agree_with_the_source() -> None:
    assert f"constexpr int MAX_WARPS = {config.BACKWARD_WARPS};" in CSRC.joinpath("backward.cu").read_text()
    assert f"__launch_bounds__({config.THREADS}" in CSRC.joinpath("forward.cu").read_text()


@pytest.mark.parametrize(("columns", "tokens"), [(1, 1), (6, 197), (12, 6084), (384, 197), (192, 197), (10**7, 50)])
def test_strips_fill_the_device_and_cover_the_sequence(columns: int, tokens: int) -> None:
    forward = config.forward_strip(columns * 32, tokens, 132)
    assert forward >= 4
    assert columns * -(-tokens // forward) <= max(132 * 32, columns)
    backward = config.backward_strips(columns, tokens, 132)
    assert 1 <= backward.warps <= config.BACKWARD_WARPS
    assert backward.length >= min(tokens, 8)
    assert columns * -(-tokens // backward.length) <= max(132 * 12, columns)


def test_shipped_variants_are_those_that_run() -> None:
    for program in PROGRAMS:
        backward = program.spec.name == "conv_backward"
        for variant in program.shipped():
            routes, taps = int(variant.defines["K"]), int(variant.defines["W"])
            assert variant.defines["V"] == config.channels_per_thread(routes, taps, 4, backward=backward)
    assert config.channels_per_thread(2, 4, 2) == 2
    assert config.channels_per_thread(8, 8, 4, backward=True) == 1
