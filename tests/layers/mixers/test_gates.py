"""Gates around mixers: each published equation, whatever it is around, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, silu

from ssmvision.layers.mixers import build_mixer
from ssmvision.layers.mixers.gates import GATES, ShortConv, build_gate
from ssmvision.layers.s4nd import S4ND

pytestmark = pytest.mark.usefixtures("one_thread")

DIM = 4


class Scale(nn.Module):
    """A core that tells the gates' widths, and whose results cannot be mistaken for its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(3 * x) * self.weight + x.flip(1)


def gated(name: str, axes: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_gate(name, DIM, axes, Scale, **options).double()


def image(*grid: int) -> Tensor:
    return torch.randn(2, *grid, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def sums(name: str, gate: Any, x: Tensor) -> Tensor:
    """What a gate makes of a sequence (B, L, dim), from the equations of its paper."""
    if name in ("none", "glu"):
        y = gelu(gate.core(x)) @ gate.out.weight.t() + gate.out.bias
        return y if name == "none" else y[..., :DIM] * torch.sigmoid(y[..., DIM:])
    if name in ("gss", "gtu"):
        act = gelu if name == "gss" else silu
        mixed = gate.core(act(gate.value(x)))
        mixed = mixed if name == "gtu" else mixed @ gate.widen.weight.t() + gate.widen.bias
        return gate.out(act(gate.gate(x)) * mixed)
    if name == "h3":
        q, k, v = gate.qkv(x).split(DIM, -1)
        return gate.out(q * gate.core(taps(gate.shift, k) * v))
    v, *gates = taps(gate.short, gate.projections(x)).split(DIM, -1)
    for factor, core in zip(gates, gate.cores, strict=True):
        v = factor * core(v)
    return gate.out(v)


def taps(short: ShortConv, x: Tensor) -> Tensor:
    """A convolution tap by tap over a sequence; taps of a causal one reach back only."""
    weight, bias = short.conv.conv.weight[:, 0], short.conv.conv.bias
    assert bias is not None
    size = weight.shape[1]
    first = 1 - size if short.shift else -(size // 2)
    y = torch.zeros_like(x) + bias
    for t in range(x.shape[1]):
        for tap in range(size):
            if 0 <= t + first + tap < x.shape[1]:
                y[:, t] = y[:, t] + weight[:, tap] * x[:, t + first + tap]
    return y


class TestEquations:
    @pytest.mark.parametrize("causal", [False, True])
    @pytest.mark.parametrize("name", GATES)
    def test_each_gate(self, name: str, causal: bool) -> None:
        gate, x = gated(name, causal=causal), image(5)
        torch.testing.assert_close(gate(x), sums(name, gate, x), rtol=1e-12, atol=1e-12)

    def test_widths(self) -> None:
        assert [core.weight.numel() for core in gated("hyena", order=3).cores] == [4, 4, 4]
        assert gated("gss", expand=3, inner=0.5).core.weight.numel() == 2
        assert gated("gtu", expand=3).core.weight.numel() == 12


class TestAroundMixers:
    @pytest.mark.parametrize("name", GATES)
    def test_nothing_looks_ahead_of_a_causal_core(self, name: str) -> None:
        torch.manual_seed(0)
        module = build_mixer("s4nd", DIM, 2, gate=name, bidirectional=False, d_state=4).double()
        x = image(4, 5).requires_grad_()
        module(x)[:, 2, 3].sum().backward()
        assert x.grad is not None
        assert x.grad[:, 3:].abs().max() == 0
        assert x.grad[:, :, 4:].abs().max() == 0
        assert (x.grad[:, :3, :4] != 0).all()

    def test_any_mixer_fits_inside(self) -> None:
        module = build_gate("gss", 8, 3, lambda width: build_mixer("s4d", width, 3, gate="none", d_state=4))
        x = torch.randn(1, 3, 2, 4, 8)
        assert module(x).shape == x.shape
        left = module.no_weight_decay()  # type: ignore[operator]
        named = dict(module.named_parameters())
        assert left == {n for n in named if n.rsplit(".", 1)[-1] in ("A_real", "A_imag", "B", "inv_dt")}

    def test_s4nd_keeps_its_own_output(self) -> None:
        own = build_mixer("s4nd", DIM, 2, d_state=4)
        assert isinstance(own, S4ND)
        assert "output_linear.0.weight" in own.state_dict()
        assert isinstance(build_mixer("s4nd", DIM, 2, gate="h3", d_state=4), GATES["h3"])  # type: ignore[arg-type]


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("gsss", {}, "gate='gsss' is unknown; choose from none, glu, gss, gtu, h3, hyena"),
            ("gss", {"order": 2}, "gate 'gss' has no option 'order'; it has expand, inner, activation"),
            ("glu", {"glu": False}, "gate 'glu' has no option 'glu'; it has none"),
            ("hyena", {"order": 0}, "order must be at least 1, got 0"),
            ("gss", {"inner": 0.01}, "inner=0.01 of 4 channels leaves none"),
            ("h3", {"shift_size": 4}, "take an odd side"),
        ],
    )
    def test_options(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            gated(name, **options)

    @pytest.mark.parametrize(
        ("mixer", "options", "message"),
        [
            ("s4nd", {"gate_args": {"order": 2}}, "needs a gate"),
            ("s4d", {"d_stat": 4}, "the mixer has no option 'd_stat'; besides its own it has bidirectional"),
            ("tnn", {"decay": 0}, r"decay must be in \(0, 1\], got 0"),
            ("tnn", {"symmetric_center": True}, "those of 'tnn' lie at their lags already"),
            ("hyena", {"reference": 0}, "a window needs reference >= 1"),
            ("lru", {"r_min": 2.0}, "the ring needs 0 <= r_min < r_max <= 1"),
            ("s5", {"d_state": 6, "blocks": 2}, "blocks=2 must divide d_state=6 into even parts"),
            ("s5", {"trank": 2}, "complex states have 2 channels a direction and trank=1, got 8 channels"),
            ("s5", {"disc": "dss"}, "choose from zoh, bilinear"),
            ("liquid_s4", {"degree": 1}, "degree must be at least 2, got 1"),
        ],
    )
    def test_mixers(self, mixer: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            build_mixer(mixer, DIM, 2, **options)
