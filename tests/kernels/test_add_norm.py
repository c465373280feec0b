"""The fused norms without a GPU: against torch's, gradients in float64, dtypes, and sources that compile."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvision.kernels.add_norm import add_layer_norm, add_rms_norm, config, cuda_programs
from ssmvision.kernels.add_norm.op import add_norm
from ssmvision.kernels.cuda import programs
from ssmvision.kernels.cuda.compiler import compile_cubin
from ssmvision.layers.norm import LayerNorm, RMSNorm
from ssmvision.layers.residual_mamba import ResidualMambaBlock

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
CSRC = files("ssmvision.kernels.add_norm").joinpath("csrc")
PROGRAMS = [program for program in programs() if program.spec.package == "ssmvision.kernels.add_norm"]


def make(shape: tuple[int, ...], dtype: torch.dtype = F64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    return [torch.randn(*s, generator=g, dtype=F64).to(dtype).requires_grad_() for s in (shape, shape, shape[-1:])]


@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 1), (4, 16), (6,)], ids=str)
def test_equals_rms_norm_with_gradients(shape: tuple[int, ...], has_residual: bool) -> None:
    hidden, residual, weight = make(shape)
    leaves = [hidden, residual, weight] if has_residual else [hidden, weight]
    total = hidden + residual if has_residual else hidden
    want = (F.rms_norm(total, shape[-1:], weight, 1e-5), total)
    got = add_rms_norm(hidden, residual if has_residual else None, weight, 1e-5)
    scale = torch.cos(torch.arange(hidden.numel(), dtype=F64)).view(shape)
    grads = (torch.autograd.grad((y * scale).sum() + (t * scale.sin()).sum(), leaves) for y, t in (got, want))
    for ours, theirs in (*zip(got, want, strict=True), *zip(*grads, strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 7), (3, 1), (4, 16), (6,)], ids=str)
def test_equals_layer_norm_with_gradients(shape: tuple[int, ...], has_residual: bool, has_bias: bool) -> None:
    hidden, residual, weight = make(shape)
    bias = make(shape)[2].detach().sin().requires_grad_() if has_bias else None
    leaves = [t for t in (hidden, residual if has_residual else None, weight, bias) if t is not None]
    total = hidden + residual if has_residual else hidden
    want = (F.layer_norm(total, shape[-1:], weight, bias, 1e-5), total)
    got = add_layer_norm(hidden, residual if has_residual else None, weight, bias, 1e-5)
    scale = torch.cos(torch.arange(hidden.numel(), dtype=F64)).view(shape)
    grads = (torch.autograd.grad((y * scale).sum() + (t * scale.sin()).sum(), leaves) for y, t in (got, want))
    for ours, theirs in (*zip(got, want, strict=True), *zip(*grads, strict=True)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_layer_norm_keeps_the_streams_dtype() -> None:
    hidden, residual, weight = make((2, 3, 8), BF16)
    normed, total = add_layer_norm(hidden, residual, weight)
    assert (normed.dtype, total.dtype) == (BF16, BF16)
    assert add_layer_norm(hidden, None, weight.float())[0].dtype == F32
    assert add_layer_norm(hidden, None, weight)[1] is hidden
    with pytest.raises(TypeError, match=r"bias must have weight's dtype torch.bfloat16, got torch.float32"):
        add_layer_norm(hidden, None, weight, torch.zeros(8))


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_layer_norm_on_a_cpu_is_bitwise_torchs(dtype: torch.dtype) -> None:
    norm = LayerNorm(24, dtype=dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    hidden, residual, _ = make((3, 5, 24), F32)
    want = F.layer_norm(residual + hidden, (24,), norm.weight.float(), norm.bias.float(), 1e-5).to(dtype)
    normed, stream = norm.add(hidden, residual)
    assert torch.equal(normed, want)
    assert torch.equal(stream, residual + hidden)


def test_gradcheck() -> None:
    leaves = tuple(make((3, 4)))
    bias = leaves[2].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *a: add_layer_norm(*a), (*leaves, bias))
    assert torch.autograd.gradcheck(lambda *a: add_rms_norm(*a), leaves)
    assert torch.autograd.gradcheck(lambda h, w: add_rms_norm(h, None, w), (leaves[0], leaves[2]))


@pytest.mark.parametrize(
    ("hidden", "residual", "weight", "normed", "stream"),
    [
        (BF16, F32, F32, F32, F32),
        (BF16, None, F32, F32, F32),
        (F32, None, BF16, BF16, F32),
        (F16, F16, F16, F16, F32),
        (F32, F64, F32, F32, F64),
        (F64, F32, F32, F32, F64),
    ],
)
def test_default_dtypes(
    hidden: torch.dtype, residual: torch.dtype | None, weight: torch.dtype, normed: torch.dtype, stream: torch.dtype
) -> None:
    h, r, w = make((2, 3, 8))
    leaves = [h.detach().to(hidden).requires_grad_(), w.detach().to(weight).requires_grad_()]
    other = None if residual is None else r.detach().to(residual).requires_grad_()
    out, total = add_rms_norm(leaves[0], other, leaves[1])
    assert (out.dtype, total.dtype) == (normed, stream)
    ((out.double().sum()) + total.double().sum()).backward()
    for leaf in (*leaves, other):
        if leaf is not None:
            assert leaf.grad is not None
            assert leaf.grad.dtype == leaf.dtype


def test_stream_that_starts_unchanged_is_not_copied() -> None:
    hidden, _, weight = make((2, 3, 8), F32)
    assert add_rms_norm(hidden, None, weight)[1] is hidden


def test_autocast_gives_its_dtype() -> None:
    hidden, residual, weight = make((2, 3, 8), F32)
    with torch.autocast("cpu", dtype=BF16):
        normed, total = add_rms_norm(hidden, residual, weight)
    assert (normed.dtype, total.dtype) == (BF16, F32)


def test_each_result_alone_has_gradients() -> None:
    hidden, residual, weight = make((2, 3, 8))
    normed, total = add_rms_norm(hidden, residual, weight)
    grads = torch.autograd.grad(total.sum(), (hidden, residual, weight), allow_unused=True, retain_graph=True)
    assert torch.equal(grads[0], torch.ones_like(hidden))
    assert torch.equal(grads[1], torch.ones_like(hidden))
    assert grads[2] is None
    assert torch.autograd.grad(normed.sum(), weight)[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_layer_on_a_cpu_is_bitwise_torchs(dtype: torch.dtype) -> None:
    """With parameters in another precision than the stream's too."""
    norm = RMSNorm(24, eps=1e-5, dtype=dtype)
    nn.init.normal_(norm.weight)
    hidden, residual, _ = make((3, 5, 24), F32)
    total = residual + hidden
    want = F.rms_norm(total, (24,), norm.weight.float(), 1e-5).to(dtype)
    normed, stream = norm.add(hidden, residual, F32)
    assert torch.equal(normed, want)
    assert torch.equal(norm(total), want)
    assert torch.equal(stream, total)


@pytest.mark.parametrize("in_fp32", [True, False])
def test_block_carries_the_stream_in_its_dtype(in_fp32: bool) -> None:
    block = ResidualMambaBlock(8, RMSNorm(8, eps=1e-5, dtype=BF16), {"dtype": BF16}, residual_in_fp32=in_fp32)
    hidden = torch.randn(2, 5, 8, dtype=BF16)
    out, residual = block(hidden)
    assert (out.dtype, residual.dtype) == (BF16, F32 if in_fp32 else BF16)
    out, residual = block(out, residual)
    assert (out.dtype, residual.dtype) == (BF16, F32 if in_fp32 else BF16)


@pytest.mark.parametrize("has_residual", [True, False])
@pytest.mark.parametrize("stream", [F32, BF16], ids=str)
def test_opcheck(stream: torch.dtype, has_residual: bool) -> None:
    hidden, residual, weight = make((2, 3, 8), BF16)
    for centered in (False, True):
        args = (hidden, residual if has_residual else None, weight, weight if centered else None, centered)
        checks = torch.library.opcheck(add_norm, (*args, 1e-5, F32, stream, "auto"))
        assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("autocast", [True, False])
def test_compiles_into_one_graph(autocast: bool) -> None:
    leaves = make((2, 3, 8), F32)
    values = []
    for run in (torch.compile(add_rms_norm, backend="aot_eager", fullgraph=True), add_rms_norm):
        with torch.autocast("cpu", dtype=BF16, enabled=autocast):
            normed, total = run(*leaves)
        loss = normed.float().sin().sum() + total.cos().sum()
        values.append((normed, total, *torch.autograd.grad(loss, leaves)))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.tensor(1.0)}, "hidden must be"),
        ({"residual": torch.zeros(2, 3, 7)}, r"residual must have hidden's shape \(2, 3, 8\), got \(2, 3, 7\)"),
        ({"weight": torch.zeros(7)}, r"weight must have shape \(8,\), got \(7,\)"),
        ({"weight": torch.zeros(8, device="meta")}, "weight is on meta but hidden is on cpu"),
        ({"backend": "cuda"}, "cpu is not a CUDA device"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    hidden, residual, weight = make((2, 3, 8), F32)
    args: dict[str, Any] = {"hidden": hidden, "residual": residual, "weight": weight}
    with pytest.raises((ValueError, RuntimeError), match=message):
        add_rms_norm(**args | change)
    with pytest.raises(TypeError, match="hidden must be a real floating-point tensor"):
        add_rms_norm(hidden.long(), residual, weight)


def test_second_derivative_is_refused() -> None:
    hidden, residual, weight = make((2, 3, 8))
    (grad,) = torch.autograd.grad(add_rms_norm(hidden, residual, weight)[0].sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(("channels", "aligned"), [(1, 1), (130, 2), (1026, 2), (4095, 1), (4096, 4), (6000, 4)])
def test_unusual_widths_compile(channels: int, aligned: int) -> None:
    """What `add_rms_norm` compiles when it is asked for."""
    for program in PROGRAMS:
        rows = config.row_config(channels, aligned, backward=program.spec.name == "norm_backward")
        shape = {"V": rows.channels, "PACKS": rows.packs, "LANES": rows.lanes, "ROWS": rows.rows, "CENTERED": 1}
        defines = {"HIDDEN": 1, "RESIDUAL": 1, "WEIGHT": 1, "OUT": 1, **shape}
        options = [f"-D{key}={value}" for key, value in defines.items()]
        source = program.source
        compile_cubin(source.text, name=source.name, arch="sm_90", options=options, headers=source.headers)


def test_shipped_variants_are_those_of_the_models_widths() -> None:
    for program in PROGRAMS:
        backward = program.spec.name == "norm_backward"
        for centered, widths in ((0, (192, 384, 768)), (1, (96, 192, 384, 768))):
            variants = [v.defines for v in program.shipped() if v.defines["CENTERED"] == centered]
            shipped = {tuple(v[key] for key in ("PACKS", "LANES", "ROWS")) for v in variants}
            configs = [config.row_config(width, 4, backward=backward) for width in widths]
            assert shipped == {(c.packs, c.lanes, c.rows) for c in configs}


@pytest.mark.parametrize("channels", [1, 33, 96, 384, 1026, 4095, 4096, 9000])
def test_a_row_lies_on_its_lanes(channels: int) -> None:
    for aligned in (1, 2, 4):
        for backward in (False, True):
            rows = config.row_config(channels, aligned, backward=backward)
            assert rows.packs * rows.lanes * aligned >= channels
            assert rows.threads <= 512
            assert config.backward_blocks(5, rows, 132) <= 5
            assert rows.lanes % 32 == 0 or 32 % rows.lanes == 0


def test_parameter_block_has_the_fields_of_the_source() -> None:
    """Same names in the same order: a field that is missing on one side would shift all that follow."""
    match = re.search(r"struct Norm {(.*?)\n};", CSRC.joinpath("common.cuh").read_text(), re.DOTALL)
    assert match is not None
    body = re.sub(r"//.*", "", match[1])
    declared = [line.split()[-1].strip("*") for line in body.split(";") if line.strip()]
    assert declared == [field[0] for field in cuda_programs.Norm._fields_]
