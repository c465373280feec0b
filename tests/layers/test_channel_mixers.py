"""Channel mixers against loops written from their papers' equations, and against published code."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ssmvision.export import to_onnx
from ssmvision.layers.channel_mixers import build_channel_mixer, channel_mixer_names, register_channel_mixer
from ssmvision.layers.channel_mixers.einfft import EinFFT
from ssmvision.layers.channel_mixers.moe import MixtureOfExperts, auxiliary_loss

GOLDEN = Path(__file__).parents[1] / "golden" / "mixers"
NAMES = [name for name in channel_mixer_names() if name != "none"]


@pytest.mark.parametrize("name", NAMES)
def test_any_grid_any_precision(name: str) -> None:
    torch.manual_seed(0)
    mixer = build_channel_mixer(name, 8)
    assert mixer is not None
    for grid in ((5,), (3, 7), (2, 3, 5)):
        x = torch.randn(2, *grid, 8).requires_grad_()
        y = mixer(x)
        assert y.shape == x.shape
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = mixer(x)
        assert (low - y).abs().max() < 0.05 * y.abs().max()
        low.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mixer.parameters())
    assert mixer(torch.zeros(0, 4, 8)).shape == (0, 4, 8)
    spread = torch.randn(2, 8, 3, 5).movedim(1, -1)
    torch.testing.assert_close(mixer(spread), mixer(spread.contiguous()))
    compiled = torch.compile(mixer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(spread), mixer(spread))


def test_einfft_is_the_official_layer() -> None:
    with np.load(GOLDEN / "einfft.npz") as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    mixer = EinFFT(8).double()
    mixer.load_state_dict({name: stored[name] for name in ("weight1", "weight2", "bias1", "bias2")})
    x = stored["x"].unflatten(1, (5, 3)).requires_grad_()
    y = mixer(x)
    torch.testing.assert_close(y.flatten(1, 2), stored["y"], rtol=1e-10, atol=1e-12)
    dx, dweight1 = torch.autograd.grad(y, [x, mixer.weight1], stored["dy"].view(y.shape))
    torch.testing.assert_close(dx.flatten(1, 2), stored["dx"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dweight1, stored["dweight1"], rtol=1e-10, atol=1e-12)


def test_einfft_compiled() -> None:
    torch.manual_seed(0)
    mixer = EinFFT(8)
    compiled = torch.compile(mixer, fullgraph=True)  # inductor checks layouts, which backend="eager" does not
    for x in (torch.randn(2, 3, 5, 8), torch.randn(2, 8, 3, 5).movedim(1, -1)):
        torch.testing.assert_close(compiled(x), mixer(x))


def loop_of_experts(mixer: MixtureOfExperts, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Output and balancing loss, position by position."""
    shares = torch.softmax(tokens @ mixer.router.weight.T, -1)
    used = torch.zeros(mixer.experts, dtype=tokens.dtype)
    rows = []
    for token, share in zip(tokens, shares, strict=True):
        order = sorted(range(mixer.experts), key=lambda e: -share[e].item())[: mixer.top_k]
        total = sum(share[e] for e in order) if mixer.top_k > 1 else 1.0
        row = torch.zeros_like(token)
        for e in order:
            hidden = F.gelu(token @ mixer.weight1[e] + mixer.bias1[e, 0])
            row = row + share[e] / total * (hidden @ mixer.weight2[e] + mixer.bias2[e, 0])
            used[e] += 1 / (mixer.top_k * len(tokens))
        rows.append(row)
    return torch.stack(rows), mixer.balance * mixer.experts * (used * shares.mean(0)).sum()


@pytest.mark.parametrize(("experts", "top_k"), [(4, 2), (5, 1), (2, 2)])
@pytest.mark.parametrize("skew", [0.0, 50.0], ids=["spread", "all to one"])
def test_experts_are_a_loop_over_positions(experts: int, top_k: int, skew: float) -> None:
    torch.manual_seed(0)
    mixer = MixtureOfExperts(6, experts=experts, top_k=top_k, ratio=2.0).double()
    tokens = torch.randn(23, 6, dtype=torch.float64)
    with torch.no_grad():
        tokens[:, 0] = 1.0
        mixer.router.weight.mul_(3)[0, 0] += skew
        mixer.bias1.normal_()
        mixer.bias2.normal_()
    results = []
    for run in (lambda: (mixer(tokens), auxiliary_loss(mixer)), lambda: loop_of_experts(mixer, tokens)):
        mixer.zero_grad()
        out, loss = run()
        assert loss is not None
        (out.square().sum() + 100 * loss).backward()
        results.append([out, loss, *(p.grad.clone() for p in mixer.parameters() if p.grad is not None)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-11)


def test_balance_is_least_where_experts_share_the_work() -> None:
    mixer = MixtureOfExperts(4, experts=4, top_k=1, balance=1.0)
    with torch.no_grad():
        mixer.router.weight.copy_(20 * torch.eye(4))
    mixer(torch.eye(4))
    even = mixer.balance_loss
    mixer(torch.eye(4)[:1].expand(4, 4))
    uneven = mixer.balance_loss
    assert even is not None
    assert uneven is not None
    assert even.item() == pytest.approx(1.0)
    assert uneven.item() == pytest.approx(4.0, rel=1e-3)
    assert copy.deepcopy(mixer).balance_loss is None
    assert auxiliary_loss(torch.nn.Linear(2, 2)) is None
    torch.testing.assert_close(auxiliary_loss(mixer), uneven)
    mixer.eval()(torch.eye(4))
    assert auxiliary_loss(mixer) is None


def test_a_training_step_can_be_recorded_as_a_cuda_graph() -> None:
    """It asks for no result, and leaves no graph, whose nodes would draw gradients to the stream of an old step."""

    def step(mixer: MixtureOfExperts, tokens: torch.Tensor) -> None:
        out, loss = mixer(tokens), auxiliary_loss(mixer)
        assert loss is not None
        (out.sum() + loss).backward()

    def nodes(mixer: MixtureOfExperts) -> list[torch.autograd.graph.Node]:
        return [p.expand_as(p).grad_fn.next_functions[0][0] for p in mixer.parameters()]  # type: ignore[union-attr]

    with FakeTensorMode():  # raises where a size or a number depends on values
        step(MixtureOfExperts(4), torch.empty(2, 5, 4))
    mixer = MixtureOfExperts(4)
    step(mixer, torch.ones(2, 5, 4))
    for node in nodes(mixer):
        node.metadata["old"] = True
    del node
    assert not any("old" in node.metadata for node in nodes(mixer))


def test_gated_perceptron_has_an_mlps_parameters() -> None:
    sizes = [sum(p.numel() for p in build_channel_mixer(name, 48).parameters()) for name in ("mlp", "glu")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_names_and_options_are_checked() -> None:
    assert build_channel_mixer("none", 4) is None
    for call, words in (
        (lambda: build_channel_mixer("mpl", 4), "unknown; choose from mlp, glu"),
        (lambda: build_channel_mixer("mlp", 4, width=2), "'mlp' has no option 'width'; it has ratio"),
        (lambda: build_channel_mixer("none", 4, ratio=2), "has no option 'ratio'; it has none"),
        (lambda: build_channel_mixer("einfft", 6), "blocks=4 must divide the 6 channels"),
        (lambda: build_channel_mixer("moe", 4, top_k=9), "top_k=9 must lie between 1 and the 8 experts"),
        (lambda: register_channel_mixer("mlp", torch.nn.Linear), "'mlp' is taken"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


def test_experts_leave_the_batch_open(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mixer = MixtureOfExperts(8).eval()
    to_onnx(mixer, tmp_path / "moe.onnx", torch.randn(2, 3, 5, 8))
    session = onnxruntime.InferenceSession(tmp_path / "moe.onnx")
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, 5, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), mixer(x))
