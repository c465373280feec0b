"""The mixer operator on a CPU: against the layers one by one, through torch.compile, and what it refuses."""

from __future__ import annotations

import itertools
import re
from importlib.resources import files
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from ssmvision.kernels.mamba_mixer import cuda_programs, gemm, mamba_mixer
from ssmvision.kernels.mamba_mixer.args import Parameters, sizes_of
from ssmvision.kernels.mamba_mixer.op import mixer as mixer_op
from ssmvision.kernels.mamba_mixer.pack import buffers, copy_parameters, lay_out, layout_of, view
from ssmvision.layers.mamba import MambaMixer
from tests.kernels.mixers import assert_near, pair, results, tokens

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: list[dict[str, Any]] = [
    {},
    {"bidirectional": True},
    {"bidirectional": True, "merge": "sum", "bias": True},
    {"bias": True, "conv_bias": False, "d_conv": 1},
    {"bidirectional": True, "conv_bias": False, "d_state": 1, "dt_rank": 3, "expand": 1},
    {"bidirectional": True, "d_conv": 8, "layer_scale": 0.1},
]


def parameters(mixer: MambaMixer) -> Parameters:
    return mixer._parameters_by_route()


@pytest.mark.parametrize("recompute", ["none", "least", "scan", "all"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_layers_one_by_one(options: dict[str, Any], recompute: Any) -> None:
    """Result and the gradient of every input, in float64, on both backends; 70 tokens cross a chunk."""
    for backend, length in (("chunked", 70), ("reference", 5)):
        fused, layers = pair(6, backend=backend, **{"d_state": 4} | options)
        fused.recompute = recompute
        x = tokens(2, length, 6)
        assert_near(results(fused, x), results(layers, x), 1e-12)


def test_parameters_of_another_dtype_are_cast() -> None:
    """Under autocast the operator returns autocast's dtype, and gradients have the parameters'."""
    fused, layers = pair(8, torch.float32, d_state=4, bidirectional=True, bias=True)
    x = tokens(2, 9, 8, dtype=torch.float32)
    got, wanted = (results(m, x, torch.bfloat16) for m in (fused, layers))
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in wanted.items()}
    assert got["out"].dtype == torch.bfloat16
    assert_near(got, wanted, 0.03)


def test_tokens_need_not_be_contiguous() -> None:
    fused, layers = pair(6, d_state=4, bidirectional=True)
    x = tokens(9, 6, 2).detach().permute(2, 0, 1).requires_grad_()
    assert_near(results(fused, x), results(layers, x), 1e-12)


@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 1, 6)], ids=str)
def test_no_sequence_and_one_token(shape: tuple[int, ...]) -> None:
    fused, layers = pair(6, d_state=4, bidirectional=True)
    x = tokens(*shape)
    got, wanted = results(fused, x), results(layers, x)
    assert all(torch.allclose(got[k], v, atol=1e-14) for k, v in wanted.items())


def test_no_token() -> None:
    """Torch's convolution refuses it, so there is nothing to compare with."""
    got = results(pair(6, d_state=4, bidirectional=True)[0], tokens(2, 0, 6))
    assert got["out"].shape == (2, 0, 6)
    assert all(not t.any() for t in got.values())


def test_without_gradients_nothing_is_kept() -> None:
    fused, layers = pair(6, d_state=4, bidirectional=True)
    x = tokens(2, 9, 6)
    with torch.no_grad():
        out, *kept = mixer_op(x, parameters(fused).flat(), "forward,backward", "mean", "nothing", "auto")
        assert torch.allclose(out, layers(x), rtol=1e-12)
    assert sum(t.numel() for t in kept) == 0


def test_what_is_kept_shrinks_with_recompute() -> None:
    fused, _ = pair(16, d_state=4, bidirectional=True)
    flat, x = parameters(fused).flat(), tokens(2, 130, 16)
    with torch.no_grad():
        kept = {
            keep: sum(t.numel() for t in mixer_op(x, flat, "forward,backward", "mean", keep, "auto")[1:-2])
            for keep in ("everything", "states", "activations", "tokens")
        }
    length, inner = 2 * 130, 32
    x_dbl = 2 * length * (fused.dt_rank + 2 * 4)
    assert kept["tokens"] == 0
    assert kept["activations"] == length * 2 * inner + x_dbl
    assert kept["states"] > kept["activations"] + length * inner
    assert kept["everything"] == kept["states"] + 4 * length * inner


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keep", ["nothing", "tokens", "activations", "states", "everything"])
def test_operator_rules(keep: str, dtype: torch.dtype) -> None:
    fused, _ = pair(8, torch.float32, d_state=4, bidirectional=True)
    x = tokens(2, 9, 8, dtype=dtype).detach().requires_grad_(keep != "nothing")
    flat = [t.detach().requires_grad_(keep != "nothing") for t in parameters(fused).flat()]
    torch.library.opcheck(mixer_op, (x, flat, "forward,backward", "mean", keep, "chunked"))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph_with_gradients(dynamic: bool) -> None:
    """With `dynamic`, one graph for all lengths."""
    fused, layers = pair(8, torch.float32, d_state=4, bidirectional=True)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(fused, fullgraph=True, dynamic=dynamic, backend=counter)
    for length in (9, 70, 130) if dynamic else (9,):
        x = tokens(2, length, 8, dtype=torch.float32)
        got = torch.autograd.grad(compiled(x).square().sum(), [x, *fused.parameters()])
        wanted = torch.autograd.grad(layers(x).square().sum(), [x, *layers.parameters()])
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_counted_operations_are_the_layers(options: dict[str, Any]) -> None:
    """Of a forward; a backward has twice as many (torch counts a depthwise convolution's as if it were dense)."""
    x = tokens(2, 9, 6)
    counts = []
    for mixer in pair(6, **{"d_state": 4} | options):
        with FlopCounterMode(display=False) as counter:
            out = mixer(x)
        counts.append(counter.get_total_flops())
        if len(counts) == 1:
            with FlopCounterMode(display=False) as counter:
                out.sum().backward()
            assert counter.get_total_flops() == 2 * counts[0]
    assert counts[0] == counts[1] > 0


def test_no_second_derivative() -> None:
    """Neither of the operator nor of the short way to it."""
    fused, _ = pair(6, d_state=4)
    x = tokens(1, 5, 6)
    by_operator = mixer_op(x, parameters(fused).flat(), "forward", "mean", "states", "auto")[0]
    for out in (fused(x), by_operator):
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.sum().backward()


def test_operator_gives_what_the_short_way_gives() -> None:
    fused, _ = pair(6, d_state=4, bidirectional=True, bias=True)
    x, p = tokens(2, 9, 6), parameters(fused)
    out = mixer_op(x, p.flat(), "forward,backward", "mean", "states", "auto")[0]
    assert torch.equal(out, fused(x))
    got, wanted = (torch.autograd.grad(y.square().sum(), [x, *p.flat()]) for y in (out, fused(x)))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_refuses_vmap() -> None:
    fused, _ = pair(6, d_state=4)
    with pytest.raises(NotImplementedError, match="no vmap rule; fold the mapped axis"):
        torch.vmap(fused)(tokens(3, 1, 5, 6).detach())


def test_keeping_nothing_has_no_gradient() -> None:
    fused, _ = pair(6, d_state=4)
    with pytest.raises(RuntimeError, match="no gradient"):
        mixer_op(tokens(1, 5, 6), parameters(fused).flat(), "forward", "mean", "nothing", "auto")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("conv_bias", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_parameters_survive_the_list(bias: bool, conv_bias: bool, bidirectional: bool) -> None:
    mixer = MambaMixer(6, d_state=4, bidirectional=bidirectional, bias=bias, conv_bias=conv_bias)
    p = parameters(mixer)
    again = Parameters.from_flat(p.flat(), len(mixer.routes))
    assert [id(t) for t in again.flat()] == [id(t) for t in p.flat()]
    assert len(p.flat()) == len(list(mixer.parameters()))
    assert again._fields == p._fields
    assert all(type(a) is type(b) for a, b in zip(again, p, strict=True))


@pytest.mark.parametrize("dt_rank", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_packed_weights_are_the_parameters(dtype: torch.dtype, dt_rank: int) -> None:
    """The low rank is padded with zeros to a multiple of 16 where an element has two bytes, of 4 where it has four."""
    mixer = MambaMixer(6, d_state=4, bidirectional=True, bias=True, dt_rank=dt_rank)
    p = parameters(mixer)
    layout = layout_of(p, dtype)
    filled = buffers(p, dtype, layout)
    copy_parameters(p, layout, *filled)
    packed = view(p, layout, *filled)._asdict()
    rank = max(dt_rank, 4) if dtype == torch.float32 else 16
    assert packed["dt_weight"].shape[-1] == rank
    x_low, x_zeros, x_rest = packed["x_weight"].split((dt_rank, rank - dt_rank, 8), dim=1)
    packed["x_weight"] = torch.cat((x_low, x_rest), 1)
    packed["dt_weight"], dt_zeros = packed["dt_weight"].split((dt_rank, rank - dt_rank), dim=2)
    assert not x_zeros.any()
    assert not dt_zeros.any()
    for name, value in p._asdict().items():
        got = packed["A" if name == "A_log" else name]
        want = torch.stack(value) if isinstance(value, tuple) else value
        want = -want.exp() if name == "A_log" else want
        projection = name in ("in_weight", "in_bias", "out_weight", "out_bias", "x_weight", "dt_weight")
        torch.testing.assert_close(got, want.to(dtype if projection else torch.float32).view(got.shape))


def test_parts_of_a_buffer_do_not_overlap() -> None:
    mixer = MambaMixer(7, d_state=3, bidirectional=True, bias=True)
    layout = lay_out(sizes_of(parameters(mixer)), 8, cast=True)
    for exact, size in ((False, layout.low), (True, layout.exact)):
        slots = sorted((s for s in layout.slots if s.exact == exact), key=lambda s: s.offset)
        ends = [s.offset + s.shape[0] * s.strides[0] for s in slots]
        starts = [s.offset for s in slots[1:]] + [size]
        assert all(end <= start for end, start in zip(ends, starts, strict=True))


class TestWhenTheLayersRun:
    """`fused=True` gives way wherever the operator would not do what the layers do."""

    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        calls: list[str] = []
        module = "ssmvision.layers.mamba"
        original = MambaMixer.scan
        monkeypatch.setattr(MambaMixer, "scan", lambda *a, **k: calls.append("layers") or original(*a, **k))
        run = __import__(module, fromlist=["run_mixer"]).run_mixer
        monkeypatch.setattr(f"{module}.run_mixer", lambda *a: calls.append("operator") or run(*a))
        return calls

    @pytest.mark.parametrize(("backend", "unasked"), [("numba", "operator"), ("chunked", "layers")])
    def test_without_being_asked_where_the_scan_is_fast(self, calls: list[str], backend: str, unasked: str) -> None:
        for fused in (None, False, True):
            MambaMixer(6, fused=fused, backend=backend)(torch.randn(1, 3, 6))
        assert calls == [unasked, "layers", "operator"]

    def test_shared_directions(self, calls: list[str]) -> None:
        MambaMixer(6, bidirectional=True, shared_directions=True, fused=True)(torch.randn(1, 3, 6))
        assert calls == ["layers"]

    def test_more_taps_than_the_kernels_take(self, calls: list[str]) -> None:
        MambaMixer(6, d_conv=9, fused=True)(torch.randn(1, 3, 6))
        assert calls == ["layers"]

    def test_hooks_are_called(self, calls: list[str]) -> None:
        mixer, seen = MambaMixer(6, fused=True), []
        handle = mixer.x_proj.register_forward_hook(lambda *a: seen.append(1))
        mixer(torch.randn(1, 3, 6))
        handle.remove()
        mixer(torch.randn(1, 3, 6))
        assert (calls, seen) == (["layers", "operator"], [1])

    def test_a_replaced_projection_is_called(self, calls: list[str]) -> None:
        mixer = MambaMixer(6, fused=True)
        mixer.in_proj = nn.Sequential(mixer.in_proj)
        mixer(torch.randn(1, 3, 6))
        assert calls == ["layers"]

    def test_a_parametrised_projection_is_called(self, calls: list[str]) -> None:
        mixer = MambaMixer(6, fused=True)
        parametrize.register_parametrization(mixer.in_proj, "weight", nn.Identity())
        mixer(torch.randn(1, 3, 6))
        assert calls == ["layers"]


class TestPublicFunction:
    """`mamba_mixer` checks what it is given."""

    @pytest.fixture
    def arguments(self) -> dict[str, Any]:
        p = parameters(pair(6, d_state=4, bidirectional=True)[0])._asdict()
        return {"tokens": tokens(2, 5, 6), **p, "routes": ("forward", "backward")}

    def test_is_the_mixer(self, arguments: dict[str, Any]) -> None:
        layers = pair(6, d_state=4, bidirectional=True)[1]
        torch.testing.assert_close(mamba_mixer(**arguments), layers(arguments["tokens"]))

    def test_taps_may_lack_the_middle_axis(self, arguments: dict[str, Any]) -> None:
        flat = arguments | {"conv_weight": [t.squeeze(1) for t in arguments["conv_weight"]]}
        torch.testing.assert_close(mamba_mixer(**flat), mamba_mixer(**arguments))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"merge": "none"}, "merge must be 'sum' or 'mean', got 'none'"),
            ({"routes": ("forward", "row")}, "unknown route 'row'"),
            ({"routes": ("forward",)}, "conv_weight must have one tensor for each of 1 routes, got 2"),
            ({"recompute": "some"}, "recompute must be one of none, least, scan, all, got 'some'"),
            ({"tokens": torch.zeros(5, 6)}, r"tokens must be \(B, L, D\), got \(5, 6\)"),
            ({"tokens": torch.zeros(2, 5, 7)}, r"in_weight must have shape \(24, 7\), got \(24, 6\)"),
            ({"in_bias": torch.zeros(24)}, "in_bias and out_bias must both be given"),
            ({"D": [torch.zeros(5)] * 2}, r"D must have shape \(12,\), got \(5,\)"),
            ({"conv_weight": [torch.zeros(12, 1, 9)] * 2}, r"W from 1 to 8.*got \(12, 1, 9\)"),
            ({"out_weight": torch.zeros(6, 12, device="meta")}, "out_weight is on meta but tokens are on cpu"),
        ],
        ids=str,
    )
    def test_refuses(self, arguments: dict[str, Any], change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            mamba_mixer(**arguments | change)

    def test_refuses_integers(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match="tokens must be a real floating-point tensor, got"):
            mamba_mixer(**arguments | {"tokens": torch.zeros(2, 5, 6, dtype=torch.int64)})


def test_parameter_block_has_the_fields_of_the_source() -> None:
    """Same names in the same order: a field that is missing on one side would shift all that follow."""
    text = files("ssmvision.kernels.mamba_mixer").joinpath("csrc", "pack.cu").read_text()
    match = re.search(r"struct Pack {(.*?)\n};", text, re.DOTALL)
    assert match is not None
    declared = re.findall(r"(\w+)(?:\[ENTRIES\])?[,;]", match[1])
    assert declared == [name for name, _ in cuda_programs.Pack._fields_]
    assert f"constexpr int ENTRIES = {cuda_programs.ENTRIES};" in text
    assert f"constexpr int PER_BLOCK = {cuda_programs.PACK_PER_BLOCK};" in text


def _laid_out(t: Tensor, routes_first: bool) -> Tensor:
    """(B, K, L, C) with the directions or the sequences in front in memory."""
    return t.transpose(0, 1).contiguous().transpose(0, 1) if routes_first else t.contiguous()


@pytest.mark.parametrize("layouts", list(itertools.product((False, True), repeat=2)), ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_gemms_on_every_layout(batch: int, layouts: tuple[bool, bool]) -> None:
    """Directions in front in both, one or none; also parts of wider rows."""
    g = torch.Generator().manual_seed(0)
    wide = torch.randn(batch, 2, 7, 9, generator=g, dtype=torch.float64)
    x = _laid_out(wide, layouts[0])[..., 2:7]
    weight = torch.randn(2, 5, 4, generator=g, dtype=torch.float64)
    wanted = torch.einsum("bklm,kmn->bkln", x, weight)
    out = _laid_out(torch.zeros(batch, 2, 7, 6, dtype=torch.float64), layouts[1])[..., 1:5]
    gemm.times_each(x, weight, out)
    torch.testing.assert_close(out, wanted)
    gemm.add_times_each(out, x, weight)
    torch.testing.assert_close(out, 2 * wanted)
    outer = torch.einsum("bklm,bkln->kmn", x, wanted)
    torch.testing.assert_close(gemm.outer_each(x, _laid_out(wanted, layouts[1]), torch.float64), outer)


@pytest.mark.parametrize("tokens", [4096, 2 * 3 * 1021, 40009])
def test_sums_over_many_tokens(tokens: int) -> None:
    """Cut into equal parts, where a divisor allows that, in one piece or left to the library."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 2, tokens, width, generator=g, dtype=torch.float64) for width in (3, 2))
    torch.testing.assert_close(gemm.outer_each(a, b, torch.float64), torch.einsum("bklm,bkln->kmn", a, b))
    assert gemm._parts(tokens) == {4096: 4, 2 * 3 * 1021: 3, 40009: 1}[tokens]
