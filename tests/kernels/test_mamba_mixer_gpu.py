"""The mixer operator on a GPU: against the layers in float64, bitwise repeatable, compilable, capturable in graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import ssmvision.models  # noqa: F401  (registers)
from ssmvision.kernels.mamba_mixer.op import mixer as mixer_op
from ssmvision.layers.mamba import MambaMixer
from tests.kernels.mixers import assert_near, error, pair, results, tokens

pytestmark = pytest.mark.gpu

# dim, length, batch, options: Vim's own sizes, several segments, odd channels, one token, tails of every kind.
CASES: list[tuple[int, int, int, dict[str, Any]]] = [
    (192, 197, 2, {"bidirectional": True}),
    (64, 1500, 1, {"bidirectional": True, "merge": "sum"}),
    (33, 70, 2, {"bidirectional": True, "bias": True, "expand": 1}),
    (36, 65, 3, {"conv_bias": False, "d_state": 4}),
    (16, 1, 2, {"bidirectional": True, "d_conv": 2}),
    (24, 40, 2, {"d_state": 24, "layer_scale": 0.5}),
]
# Relative error by norm of the operator, whose GEMMs and activations round to the dtype.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def exact_gemms() -> Any:
    """TensorFloat-32 off, which would hide errors of the kernels behind its own."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def in_float64(mixer: MambaMixer, x: Tensor) -> dict[str, Tensor]:
    wide = copy.deepcopy(mixer).double()
    wide.fused, wide.backend = False, "chunked"
    return results(wide, x.detach().double().requires_grad_())


@pytest.mark.parametrize("recompute", ["none", "least", "scan", "all"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_matches_float64(case: Any, recompute: Any) -> None:
    dim, length, batch, options = case
    fused, _ = pair(dim, torch.float32, "cuda", recompute=recompute, **options)
    x = tokens(batch, length, dim, dtype=torch.float32, device="cuda")
    assert_near(results(fused, x), in_float64(fused, x), 1e-5)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_is_as_near_to_float64_as_the_layers(case: Any, dtype: torch.dtype) -> None:
    dim, length, batch, options = case
    fused, layers = pair(dim, torch.float32, "cuda", **options)
    x = tokens(batch, length, dim, dtype=torch.float32, device="cuda")
    got, other = results(fused, x, dtype), results(layers, x, dtype)
    assert {k: v.dtype for k, v in got.items()} == {k: v.dtype for k, v in other.items()}
    wanted = in_float64(fused, x)
    ours, theirs = error(got, wanted), error(other, wanted)
    assert all(value < max(TOLERANCE[dtype], 2 * theirs[name]) for name, value in ours.items())


def test_low_precision_parameters() -> None:
    """No autocast: everything in bfloat16, also with A in float32 beside it, which one launch cannot pack."""
    for wide_a in (False, True):
        fused, _ = pair(64, torch.bfloat16, "cuda", bidirectional=True)
        if wide_a:
            fused.A_log.data, fused.A_b_log.data = fused.A_log.data.float(), fused.A_b_log.data.float()
        x = tokens(2, 70, 64, dtype=torch.bfloat16, device="cuda")
        got = results(fused, x)
        assert all(got[name].dtype == p.dtype for name, p in fused.named_parameters())
        assert_near(got, in_float64(fused, x), 3e-2)


def test_runs_are_bitwise_equal() -> None:
    fused, _ = pair(192, torch.float32, "cuda", bidirectional=True)
    x = tokens(4, 197, 192, dtype=torch.float32, device="cuda")
    first, second = (results(fused, x, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())


def test_runs_where_the_scan_runs_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    scan = MambaMixer.scan
    monkeypatch.setattr(MambaMixer, "scan", lambda *a, **k: calls.append("layers") or scan(*a, **k))
    x = torch.randn(1, 9, 16, device="cuda")
    for backend, fused in (("auto", None), ("cuda", None), ("auto", False), ("chunked", None)):
        before = len(calls)
        MambaMixer(16, backend=backend, fused=fused, device="cuda")(x)
        assert (len(calls) > before) == (fused is False or backend == "chunked")
    MambaMixer(16, device="cuda", dtype=torch.float64)(x.double())  # the scan's kernels have no float64
    assert len(calls) == 3


def test_operator_rules() -> None:
    fused, _ = pair(32, torch.float32, "cuda", bidirectional=True)
    x = tokens(2, 70, 32, dtype=torch.float32, device="cuda")
    flat = [t.detach().requires_grad_() for t in fused._parameters_by_route().flat()]
    torch.library.opcheck(mixer_op, (x, flat, "forward,backward", "mean", "states", "cuda"))


def test_compiles_as_one_graph_with_gradients() -> None:
    fused, layers = pair(64, torch.float32, "cuda", bidirectional=True)
    x = tokens(2, 70, 64, dtype=torch.float32, device="cuda")
    torch.compiler.reset()
    fused.fused = None
    wanted = results(layers, x)
    compiled = torch.compile(fused, fullgraph=True)
    out = compiled(x)
    weigh = torch.cos(torch.arange(out.numel(), device="cuda", dtype=torch.float64)).view(out.shape)
    named = {"tokens": x, **dict(fused.named_parameters())}
    grads = torch.autograd.grad(out, list(named.values()), weigh.to(out.dtype))
    got = {"out": out.detach(), **dict(zip(named, grads, strict=True))}
    assert_near(got, wanted, 1e-5)


def small_vim(train: bool) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vim_tiny", img_size=64, depth=3, num_classes=7).cuda().train(train)


def capture(step: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = step()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, out


def test_captured_forward_sees_new_images_and_new_weights() -> None:
    model, images = small_vim(False), torch.randn(2, 3, 64, 64, device="cuda")

    @torch.no_grad()
    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
            return model(images)

    graph, out = capture(step)
    images.normal_()
    with torch.no_grad():
        model.layers[0].mixer.in_proj.weight.mul_(2)
    graph.replay()
    assert torch.equal(out, step())


def test_captured_training_steps_are_the_eager_ones() -> None:
    """Forward, backward and the optimiser's step in one graph, against the same steps one by one."""
    images = torch.randn(4, 3, 64, 64, device="cuda")
    labels = torch.arange(4, device="cuda")
    ends = []
    for captured in (False, True):
        model = small_vim(True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True, capturable=True)

        def step(model: nn.Module = model, optimiser: torch.optim.Optimizer = optimiser) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
                loss = nn.functional.cross_entropy(model(images), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            return loss.detach()

        if captured:
            graph, loss = capture(step)
            for _ in range(3):
                graph.replay()
        else:
            for _ in range(5):
                loss = step()
        ends.append([loss.clone(), *(p.detach().clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_make_graphed_callables() -> None:
    model = small_vim(True)
    images = torch.randn(2, 3, 64, 64, device="cuda")
    wanted = [model(images).detach()]
    model(images).square().sum().backward()
    wanted += [p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    graphed = torch.cuda.make_graphed_callables(model, (images.clone(),))
    out = graphed(images)
    out.square().sum().backward()
    got = [out.detach(), *(p.grad for p in model.parameters())]
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(got, wanted, strict=True))
