"""SS2D against stored outputs of the official code, and what its options promise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ssmvision.layers.ss2d import SS2D
from tests.parity_cases import ss2d as parity
from tests.parity_cases.common import load_json

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parent.parent / "golden" / "ss2d"
CASES = load_json(GOLDEN / "manifest.json")["cases"]
SCANS = ("cross", "one_way", "two_way", "cascade")


def build(**kwargs: Any) -> SS2D:
    torch.manual_seed(0)
    return SS2D(**{"dim": 8, "d_state": 2} | kwargs)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def test_the_folder_is_recognised() -> None:
    assert parity.matches(GOLDEN)
    assert not parity.matches(GOLDEN.parent / "umamba")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_golden(case: dict[str, Any]) -> None:
    comparisons = list(parity.run_case(GOLDEN, case))
    assert len(comparisons) == len(case["outputs"])
    assert [c for c in comparisons if not c.passed] == []


def test_a_wrong_route_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.ROUTES, "cross", ("row", "column", "column_reverse", "row_reverse"))
    failed = {c.case for case in CASES for c in parity.run_case(GOLDEN, case) if not c.passed}
    assert {"ss2d_v0_cl_n8", "scan_scans0_cf_cf", "merge_scans0_cl_cl"} <= failed


@pytest.mark.parametrize(("scan", "gate"), [("cross", "silu"), ("cross", "linear"), ("cascade", "none")])
def test_gradients_are_those_of_the_output(scan: Any, gate: Any) -> None:
    layer = build(dim=2, expand=1.0, d_state=1, scan=scan, gate=gate).double()
    x = image(1, 2, 3, 2, dtype=torch.float64).requires_grad_()
    parameters = dict(layer.named_parameters())

    def run(x: torch.Tensor, *values: torch.Tensor) -> Any:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, (x, *parameters.values()), atol=1e-5)


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (7, 1), (5, 3)])
def test_any_map_size(scan: Any, size: tuple[int, int]) -> None:
    layer = build(scan=scan)
    x = image(2, *size, 8).requires_grad_()
    out = layer(x)
    assert out.shape == x.shape
    out.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("d_state", range(1, 17))
def test_every_number_of_states(d_state: int) -> None:
    layer = build(d_state=d_state)
    out = layer(image(1, 4, 3, 8))
    out.sum().backward()
    assert out.isfinite().all()
    assert layer.A_logs.shape == (4 * 16, d_state)
    assert layer.A_logs.grad is not None
    assert bool((layer.A_logs.grad != 0).any(0).all())  # every state takes part


@pytest.mark.parametrize("scan", SCANS)
def test_channels_first_is_the_same_layer(scan: Any) -> None:
    last, first = build(scan=scan), build(scan=scan, channels_first=True)
    first.load_state_dict(last.state_dict())
    x = image(2, 4, 5, 8)
    torch.testing.assert_close(first(x.permute(0, 3, 1, 2)), last(x).permute(0, 3, 1, 2))


def test_the_cross_scan_sees_everything_and_one_way_only_what_was_before() -> None:
    for scan, all_positions in (("cross", True), ("two_way", True), ("one_way", False)):
        layer = build(scan=scan, d_conv=0)
        x = image(1, 3, 4, 8).requires_grad_()
        layer(x)[0, 1, 2].sum().backward()
        assert x.grad is not None
        reached = x.grad[0].abs().sum(-1).flatten() > 0
        assert reached[: 1 * 4 + 3].all()
        assert bool(reached[1 * 4 + 3 :].all()) is all_positions
        assert all_positions or not reached[1 * 4 + 3 :].any()


def test_without_convolution_and_with_dropout() -> None:
    layer = build(d_conv=0, dropout=0.5)
    assert not any("conv2d" in key for key in layer.state_dict())
    x = image(2, 3, 3, 8)
    assert (layer(x) == 0).any()
    assert not (layer.eval()(x) == 0).any()


def test_autocast_keeps_the_result_near() -> None:
    layer, x = build(), image(2, 6, 6, 8)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_parameters_of_another_dtype(dtype: torch.dtype) -> None:
    layer = build(dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert layer(image(1, 3, 4, 8, dtype=dtype)).dtype == dtype


class TestInitialValues:
    def test_mamba(self) -> None:
        layer = build(dim=32, d_state=4, init="mamba")
        torch.testing.assert_close(layer.A_logs.exp(), torch.arange(1.0, 5.0).expand(4 * 64, 4))
        steps = F.softplus(layer.dt_projs_bias)
        assert steps.min() >= 1e-3 * 0.999
        assert steps.max() <= 0.1 * 1.001
        assert layer.dt_projs_weight.abs().max() <= layer.dt_rank**-0.5
        assert bool((layer.Ds == 1).all())

    def test_uniform_and_normal(self) -> None:
        layer = build(init="uniform")
        assert bool((layer.A_logs == 0).all())
        for parameter in (layer.dt_projs_weight, layer.dt_projs_bias):
            assert 0 <= parameter.min() < parameter.max() < 0.1
        layer.reset_ssm_parameters("normal")
        assert 0.8 < layer.A_logs.std() < 1.2
        assert 0.06 < layer.dt_projs_bias.std() < 0.14

    def test_meta(self) -> None:
        with torch.device("meta"):
            layer = build()
        assert {p.device.type for p in layer.parameters()} == {"meta"}
        assert layer.no_weight_decay() <= set(layer.state_dict())


class TestOfficialArguments:
    @pytest.mark.parametrize(
        ("forward_type", "expected"),
        [
            ("v0seq", ("cross", "silu", False)),
            ("v3_noz", ("cross", "none", False)),
            ("v05_nozact_oact_no32", ("cross", "linear", True)),
            ("v32d_noz", ("two_way", "none", False)),
            ("v052dc", ("cascade", "silu", False)),
        ],
    )
    def test_forward_type(self, forward_type: str, expected: tuple[str, str, bool]) -> None:
        layer = SS2D.from_official_kwargs(d_model=8, d_state=2, forward_type=forward_type)
        assert (layer.scan_mode, layer.gate, isinstance(layer.out_act, torch.nn.GELU)) == expected

    def test_v0_does_not_read_the_convolution(self) -> None:
        layer = SS2D.from_official_kwargs(d_model=8, forward_type="v0", d_conv=5, conv_bias=False, initialize="v2")
        assert layer.conv2d is not None
        assert layer.conv2d.kernel_size == (3, 3)
        assert layer.conv2d.bias is not None
        assert layer.A_logs.max() > 1

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"forward_type": "v05_onsigmoid_noz"}, "v05_onsigmoid_noz"),
            ({"forward_type": "v05_oact_noz"}, "in this order"),
            ({"forward_type": "xv1a"}, "xv1a"),
            ({"forward_type": "v05", "act_layer": torch.nn.GELU}, "act_layer"),
            ({"forward_type": "v05", "initialize": "v3"}, "v0, v1, v2"),
            ({"forward_type": "v0", "channel_first": True}, "channel-last"),
            ({}, "forward_type"),
        ],
    )
    def test_what_is_refused(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SS2D.from_official_kwargs(d_model=8, **kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scan": "zigzag"}, "zigzag"),
        ({"gate": "gelu"}, "silu"),
        ({"init": "v0"}, "mamba"),
        ({"d_conv": 4}, "d_conv=4"),
    ],
)
def test_wrong_settings_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**kwargs)


def test_wrong_maps_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(B, H, W, 8\), got \(2, 8, 3, 4\)"):
        build()(image(2, 8, 3, 4))
    with pytest.raises(ValueError, match=r"\(B, 8, H, W\), got \(2, 3, 4, 8\)"):
        build(channels_first=True)(image(2, 3, 4, 8))
    with pytest.raises(ValueError, match=r"got \(3, 4, 8\)"):
        build()(image(3, 4, 8))
