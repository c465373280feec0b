"""The depthwise convolution without a GPU: against torch's conv2d, gradients in float64, checks, programs and cuts."""

from __future__ import annotations

import re
from importlib.resources import files
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.cuda import programs
from ssmvision.kernels.depthwise_conv import config, cuda_programs, depthwise_conv2d
from ssmvision.kernels.depthwise_conv.op import conv
from ssmvision.ops import depthwise_conv2d as exported

CSRC = files("ssmvision.kernels.depthwise_conv").joinpath("csrc")
PROGRAMS = [program for program in programs() if program.spec.package == "ssmvision.kernels.depthwise_conv"]


def make(height: int, width: int, side: int, channels: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    g = torch.Generator().manual_seed(height * 10 + side)
    shapes = ((2, height, width, channels), (channels, side, side), (channels,))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


def expected(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """By torch's own convolution of a channels-first map."""
    channels, side = x.shape[-1], weight.shape[-1]
    y = F.conv2d(x.permute(0, 3, 1, 2).contiguous(), weight.unsqueeze(1), bias, padding=side // 2, groups=channels)
    return (F.silu(y) if silu else y).permute(0, 2, 3, 1)


@pytest.mark.parametrize(("height", "width", "side"), [(1, 1, 3), (4, 7, 3), (6, 5, 1), (9, 8, 5), (3, 2, 7)])
def test_equals_conv2d_with_gradients(height: int, width: int, side: int) -> None:
    assert exported is depthwise_conv2d
    for silu, has_bias in product((True, False), (True, False)):
        tensors = [t.requires_grad_() for t in make(height, width, side)]
        x, weight, bias = tensors
        leaves, offset = (tensors, bias) if has_bias else (tensors[:2], None)
        got = depthwise_conv2d(x, weight, offset, "silu" if silu else "none")
        want = expected(x, weight, offset, silu)
        assert got.is_contiguous()
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        weights = torch.cos(torch.arange(got.numel(), dtype=got.dtype)).view(got.shape)
        for ours, theirs in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (got, want)), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_gradcheck() -> None:
    leaves = tuple(t.requires_grad_() for t in make(4, 3, 3, channels=2))
    assert torch.autograd.gradcheck(depthwise_conv2d, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_is_rounded_once(dtype: torch.dtype) -> None:
    x, weight, bias = make(6, 9, 3, dtype=dtype)
    got = depthwise_conv2d(x, weight, bias)
    assert got.dtype == dtype
    want = expected(x.double(), weight.double(), bias.double(), True)
    torch.testing.assert_close(got.double(), want, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_autocast_changes_nothing() -> None:
    x, weight, bias = make(6, 9, 3, dtype=torch.float32)
    want = depthwise_conv2d(x, weight, bias)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(depthwise_conv2d(x, weight, bias), want)


def test_a_view_and_an_empty_batch() -> None:
    x, weight, bias = make(6, 9, 3)
    wide = torch.cat([x, x], -1)
    torch.testing.assert_close(depthwise_conv2d(wide[..., 5:], weight, bias), depthwise_conv2d(x, weight, bias))
    empty = x[:0].requires_grad_()
    weight.requires_grad_()
    out = depthwise_conv2d(empty, weight, bias)
    grads = torch.autograd.grad(out.sum(), (empty, weight))
    assert out.shape == empty.shape
    assert grads[1].abs().sum() == 0


def test_operator_rules() -> None:
    x, weight, bias = (t.requires_grad_() for t in make(3, 4, 3))
    torch.library.opcheck(conv, (x, weight, bias, True, "auto"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(2, 3, 5)}, ValueError, r"x must be \(B, H, W, C\), got \(2, 3, 5\)"),
        ({"x": torch.zeros(2, 3, 4, 5, dtype=torch.int32)}, TypeError, "x must be a real floating-point tensor"),
        ({"weight": torch.zeros(5, 2, 2)}, ValueError, r"weight must have shape \(5, k, k\) with k odd, at most 7"),
        ({"weight": torch.zeros(5, 9, 9)}, ValueError, "at most 7, got"),
        ({"weight": torch.zeros(5, 1, 3, 3)}, ValueError, r"got \(5, 1, 3, 3\)"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \(5,\), got \(4,\)"),
        ({"activation": "gelu"}, ValueError, "activation must be 'silu' or 'none', got 'gelu'"),
    ],
)
def test_bad_arguments(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4, 5), "weight": torch.zeros(5, 3, 3), "bias": torch.zeros(5)} | change
    with pytest.raises(error, match=message):
        depthwise_conv2d(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("structure", "ours"), [("Map", cuda_programs.Map), ("Conv", cuda_programs.Conv)])
def test_parameter_blocks_have_the_fields_of_the_source(structure: str, ours: type) -> None:
    match = re.search(rf"struct {structure} {{(.*?)\n}};", CSRC.joinpath("common.cuh").read_text(), re.DOTALL)
    assert match is not None
    declared = []
    for line in re.sub(r"//.*", "", match[1]).split(";"):
        first, *rest = line.strip().split(",")
        declared += [name.split()[-1].strip(" *") for name in (first, *rest) if name.strip()]
    assert declared == [name for name, _ in ours._fields_]  # type: ignore[attr-defined]


def test_constants_agree_with_the_source() -> None:
    text = CSRC.joinpath("common.cuh").read_text()
    assert f"COLUMNS = {config.COLUMNS}" in text
    assert f"GROUPS = {config.GROUPS}, UNITS = {config.UNITS};" in text


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 7), (56, 56), (13, 30), (500, 3)])
def test_cuts_cover_the_map(height: int, width: int) -> None:
    for batch, groups in ((1, 1), (2, 24), (128, 192)):
        cut = config.cut(batch, height, width, groups, 132)
        stacks, tiles, strips = cut.blocks
        assert stacks * config.UNITS >= cut.units == batch * -(-width // config.COLUMNS)
        assert tiles * config.GROUPS >= groups
        assert (strips - 1) * cut.strip < height <= strips * cut.strip


@pytest.mark.slow
@pytest.mark.parametrize(("side", "channels"), [(1, 1), (5, 2), (7, 1)])
def test_unusual_variants_compile(side: int, channels: int) -> None:
    for program in PROGRAMS:
        defines = {"IO": 1, "K": side, "V": channels, "SILU": 0, "FLIP": 0}
        assert program.variant(defines).build("sm_90").cubin
