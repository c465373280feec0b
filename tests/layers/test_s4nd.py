"""The S4ND layer: options, sampling rates, kept kernels, optimizer rules, compilation."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmvision.layers.s4nd import KERNELS, S4ND, set_rate, shared_kernels
from ssmvision.layers.s4nd_dplr import S4Kernel
from ssmvision.layers.s4nd_kernel import generate
from ssmvision.layers.s4nd_optim import param_groups

SMALL = {"d_state": 8, "n_ssm": 1, "dt_min": 0.1, "dt_max": 1.0}


def layer(kernel: str = "s4d", **options: object) -> S4ND:
    torch.manual_seed(0)
    settings = {"l_max": (8, 6), "dim": None} | (SMALL if kernel in ("s4", "s4d", "dss") else {"d_state": 4}) | options
    return S4ND(3, kernel=kernel, **settings)


def image(*grid: int, features: int = 3, batch: int = 2) -> Tensor:
    return torch.randn(batch, features, *grid, generator=torch.Generator().manual_seed(1))


class TestForward:
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_every_kernel_mixes_the_whole_map(self, kernel: str) -> None:
        module = layer(kernel)
        u = image(8, 6).requires_grad_()
        module(u)[0, 0, 4, 3].backward()
        assert u.grad is not None
        assert (u.grad[0, 0] != 0).all()
        assert u.grad[1].abs().max() == 0

    @pytest.mark.parametrize("grid", [(8, 6), (5, 7), (1, 6), (1, 1), (13, 9)])
    def test_sizes(self, grid: tuple[int, int]) -> None:
        for kernel in ("s4", "s4d"):
            assert layer(kernel)(image(*grid)).shape == (2, 3, *grid)

    def test_shapes_of_the_options(self) -> None:
        u = image(8, 6)
        assert layer(channels=2)(u).shape == (2, 6, 8, 6)
        assert layer(channels=2, linear=False, final_act="glu")(u).shape == (2, 3, 8, 6)
        assert layer(out_channels=5, channels=2)(u).shape == (2, 10, 8, 6)
        last = layer(transposed=False, linear=False, dropout=0.5, tie_dropout=True)
        assert last(u.movedim(1, -1)).shape == (2, 8, 6, 3)
        assert [m.d_output for m in (layer(channels=2), layer(out_channels=5), last)] == [6, 5, 3]

    def test_channels_last_is_the_same_layer(self) -> None:
        first = layer(linear=False, final_act="glu", channels=2)
        last = layer(linear=False, final_act="glu", channels=2, transposed=False)
        last.load_state_dict(first.state_dict())
        torch.testing.assert_close(last(image(8, 6).movedim(1, -1)).movedim(-1, 1), first(image(8, 6)))

    def test_causal_means_causal(self) -> None:
        u = image(8, 6).requires_grad_()
        layer(bidirectional=False)(u)[:, :, 3, 2].sum().backward()
        assert u.grad is not None
        assert u.grad[:, :, 4:].abs().max() == 0
        assert u.grad[:, :, :, 3:].abs().max() == 0
        assert (u.grad[:, :, :4, :3] != 0).all()

    def test_kernels_end_at_l_max(self) -> None:
        u = torch.zeros(1, 3, 31, 1)
        u[:, :, 15] = 1
        y = layer(l_max=(5, 5))(u)
        reached = (y[0, 0, :, 0] != 0).nonzero().flatten()
        assert reached.tolist() == list(range(10, 20))  # lags -5 ... 4

    def test_a_symmetric_center_makes_flips_commute(self) -> None:
        module = layer(symmetric_center=True).double()
        exchanged = copy.deepcopy(module)
        with torch.no_grad():
            C = exchanged.kernel[0].C
            C.copy_(torch.cat(C.chunk(2, 0)[::-1]))
        u = image(8, 6).double()
        torch.testing.assert_close(exchanged(u.flip(2)).flip(2), module(u))
        with pytest.raises(ValueError, match="causal kernel has one side"):
            layer(symmetric_center=True, bidirectional=False)


class TestRate:
    def test_each_axis_has_its_own(self) -> None:
        module = layer(l_max=None, dim=2).double()
        fine = torch.randn(1, 3, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        sides = generate(list(module.kernel), [8, 6], [0.5, 2.0])
        for side, kernel, length, rate in zip(sides, module.kernel, (8, 6), (0.5, 2.0), strict=True):
            torch.testing.assert_close(side, kernel(length, rate))
        assert not torch.allclose(module(fine, (0.5, 2.0)), module(fine))
        set_rate(module, (0.5, 2.0))
        assert torch.equal(module(fine), module(fine, (0.5, 2.0)))

    @pytest.mark.parametrize(("symmetric", "bound"), [(False, 0.02), (True, 0.002)])
    def test_a_finer_grid_shows_the_same_continuous_convolution(self, symmetric: bool, bound: float) -> None:
        module = layer(l_max=None, dim=1, init="diag-lin", bandlimit=0.2, symmetric_center=symmetric).double()
        grid = torch.arange(256, dtype=torch.float64) / 4
        smooth = torch.exp(-((grid - 30) ** 2) / 40).expand(1, 3, 256)
        fine, coarse = module(smooth, 0.25), module(smooth[..., ::2], 0.5)
        assert (fine[..., ::2] - coarse).abs().max() < bound * fine.abs().max()
        not_told = module(smooth[..., ::2], 0.25)
        assert (fine[..., ::2] - not_told).abs().max() > 0.1 * fine.abs().max()

    def test_antialias_drops_what_the_coarse_grid_cannot_hold(self) -> None:
        kernel = layer(antialias=True, init="diag-lin", d_state=32).kernel[0]
        plain = layer(init="diag-lin", d_state=32).kernel[0]
        assert torch.equal(kernel(8, 1.0), plain(8, 1.0))
        limited = layer(bandlimit=0.25, init="diag-lin", d_state=32).kernel[0]
        assert torch.equal(kernel(8, 4.0), limited(8, 4.0))
        assert not torch.equal(kernel(8, 4.0), plain(8, 4.0))
        both = generate([kernel, kernel], [8, 8], [2.0, 4.0])
        assert torch.equal(both[1], kernel(8, 4.0))

    @pytest.mark.parametrize("rate", [0, -1.0, float("nan"), float("inf"), (1.0, -1.0), (1.0,), (1.0, 1.0, 1.0)])
    def test_bad_rates(self, rate: object) -> None:
        with pytest.raises(ValueError, match="rate must be positive, one for all or each of 2 axes"):
            layer()(image(8, 6), rate)
        with pytest.raises(ValueError, match="rate must be 1"):
            layer("ema")(image(8, 6), 2.0)
        for kernel in ("s4", "s4d"):
            with pytest.raises(ValueError, match="rate must be positive and finite, got inf"):
                layer(kernel).kernel[0](8, float("inf"))


class TestLengths:
    def test_growing_keeps_the_taps(self) -> None:
        torch.manual_seed(0)
        kernel = S4Kernel(3, 8, l_max=5, dt_min=0.1, dt_max=0.5).double()
        short = kernel(5)
        assert int(kernel.l_kernel) == 5
        longer = kernel(17)
        assert int(kernel.l_kernel) == 20
        torch.testing.assert_close(longer[..., :5], short)
        torch.testing.assert_close(kernel(5), short)

    def test_plain_and_fitted_state_dicts_load(self) -> None:
        fitted, other = layer("s4"), layer("s4", init="fourier")
        other.load_state_dict(fitted.state_dict())
        assert [kernel.length for kernel in other.kernel] == [8, 6]
        torch.testing.assert_close(other(image(8, 6)), fitted(image(8, 6)))
        torch.manual_seed(0)
        plain = S4ND(3, l_max=None, kernel="s4", **SMALL)
        other.load_state_dict(plain.state_dict())
        assert [kernel.length for kernel in other.kernel] == [0, 0]
        torch.testing.assert_close(other(image(8, 6)), fitted(image(8, 6)), rtol=1e-4, atol=1e-5)


class TestKeptKernels:
    def test_evaluation_makes_them_once(self) -> None:
        module = layer("s4").eval()
        with torch.no_grad():
            module(image(8, 6))
            kept = module.kernels((8, 6))
            assert module.kernels((8, 6)) is kept
            assert module.kernels((8, 5)) is not kept
            assert module.train().kernels((8, 6)) is not kept

    @pytest.mark.parametrize("kernel", ["s4", "s4d", "ema"])
    def test_layers_share_one_batch(self, kernel: str) -> None:
        modules = [
            layer(kernel, **o) for o in ({}, {"symmetric_center": True}, {}, {"bidirectional": False}, {"trank": 2})
        ]
        with torch.no_grad():
            for i, module in enumerate(modules):
                module.kernel[0].get_parameter("gamma" if kernel == "ema" else "C").mul_(i + 1)
        for module, made in zip(modules, shared_kernels(modules, (7, 6)), strict=True):
            torch.testing.assert_close(module(image(7, 6), kernels=made), module(image(7, 6)))

    @pytest.mark.parametrize(
        "change",
        [
            lambda m: m.kernel[0].C.mul_(2),
            lambda m: m.load_state_dict({k: v * 2 if k.endswith("C") else v for k, v in m.state_dict().items()}),
            lambda m: m.double().float(),
            lambda m: m.train().eval(),
        ],
    )
    def test_changes_of_the_parameters_are_seen(self, change: object) -> None:
        module = layer().eval()
        with torch.no_grad():
            before = module(image(8, 6))
            kept = module._cache
            change(module)
            after = module(image(8, 6))
        assert module._cache is not kept
        fresh = layer().eval()
        fresh.load_state_dict(module.state_dict())
        torch.testing.assert_close(fresh(image(8, 6)), after)
        assert before.shape == after.shape

    def test_state_dicts_hold_tensors_only(self, tmp_path: Path) -> None:
        module = layer("s4").eval()
        with torch.no_grad():
            module(image(8, 6))
        torch.save(module.state_dict(), tmp_path / "weights.pt")
        loaded = torch.load(tmp_path / "weights.pt", weights_only=True)
        layer("s4", init="fourier").load_state_dict(loaded)

    def test_copies_and_pickles(self) -> None:
        module = layer("s4", lr=1e-3).eval()
        with torch.no_grad():
            expected = module(image(8, 6))
            for clone in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
                torch.testing.assert_close(clone(image(8, 6)), expected)
                assert clone.kernel[0].A_real._optim == {"lr": 1e-3, "weight_decay": 0.0}


class TestOptimizer:
    def test_rules_by_kind(self) -> None:
        module = layer("s4", lr={"dt": 1e-3, "A": 2e-3, "B": 3e-3})
        groups = {
            id(p): (group["lr"], group["weight_decay"])
            for group in module.param_groups(lr=0.1, weight_decay=0.05)
            for p in group["params"]
        }
        got = {name: groups[id(p)] for name, p in module.named_parameters() if not name.startswith("kernel.1")}
        assert got == {
            "D": (0.1, 0.05),
            "kernel.0.inv_dt": (1e-3, 0.0),
            "kernel.0.A_real": (2e-3, 0.0),
            "kernel.0.A_imag": (2e-3, 0.0),
            "kernel.0.P": (2e-3, 0.0),
            "kernel.0.B": (3e-3, 0.0),
            "kernel.0.C": (0.1, 0.05),
        }
        assert module.no_weight_decay() == {n for n in got if got[n][1] == 0} | {
            n.replace("kernel.0", "kernel.1") for n in got if got[n][1] == 0
        }

    def test_one_rate_for_all_is_also_that_of_c(self) -> None:
        module = layer(lr=1e-3)
        assert module.kernel[0].C._optim == {"lr": 1e-3}
        torch.optim.AdamW(param_groups(torch.nn.Sequential(module, torch.nn.Linear(2, 2)), 0.1, 0.05, False))

    def test_zero_freezes(self) -> None:
        names = {name for name, _ in layer(lr={"A": 0.0}).named_parameters()}
        assert "kernel.0.A_real" not in names
        assert "kernel.0.A_real" in layer(lr={"A": 0.0}).state_dict()


class TestPrecision:
    def test_half_inputs(self) -> None:
        expected = layer()(image(8, 6))
        for dtype in (torch.float16, torch.bfloat16):
            got = layer()(image(8, 6).to(dtype))
            assert got.dtype == dtype
            assert (got.float() - expected).abs().max() < 0.03 * expected.abs().max()

    def test_float16_volumes_are_computed_in_float32(self) -> None:
        module = layer(l_max=None, dim=3)
        u = image(7, 6, 5)
        exact = module(u)
        got = module(u.half())
        assert got.dtype == torch.float16
        assert (got.float() - exact).abs().max() < 2e-3 * exact.abs().max()
        with torch.autocast("cpu", dtype=torch.float16):
            assert torch.equal(module(u), exact)

    def test_strides_of_the_input_do_not_matter(self) -> None:
        for module in (layer(), layer("s4", linear=False, final_act="glu", channels=2)):
            u = image(9, 7)
            torch.testing.assert_close(module(u.to(memory_format=torch.channels_last)), module(u))
            torch.testing.assert_close(module(u.expand(2, 3, 9, 7)[:, :, ::2]), module(u[:, :, ::2].contiguous()))

    def test_bfloat16_autocast_is_followed(self) -> None:
        module = layer()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = module(image(8, 6))
        assert low.dtype == torch.bfloat16
        module.precision = "bf16"
        assert torch.equal(low, module(image(8, 6).bfloat16()))

    @pytest.mark.parametrize("kernel", KERNELS)
    def test_the_default_device_is_followed(self, kernel: str) -> None:
        with torch.device("meta"):
            module = layer(kernel)
        assert {t.device.type for t in module.state_dict().values()} == {"meta"}

    def test_meta_and_double(self) -> None:
        assert layer("s4", device="meta")(image(8, 6).to("meta")).shape == (2, 3, 8, 6)
        assert layer("s4", dtype=torch.float64)(image(8, 6).double()).dtype == torch.float64


@pytest.mark.parametrize("kernel", ["s4", "s4d"])
def test_it_compiles_without_a_break(kernel: str) -> None:
    module = layer(kernel, linear=False, final_act="glu")
    expected = module(image(8, 6))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    got = compiled(image(8, 6))
    torch.testing.assert_close(got, expected)
    grads = [torch.autograd.grad(y.square().sum(), list(module.parameters())) for y in (got, module(image(8, 6)))]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kernel": "monarch"}, "choose from s4, nplr"),
            ({"l_max": (8, 6, 4), "dim": 2}, "1, 2 or 3 axes"),
            ({"l_max": 8, "dim": None}, "dim=None needs a sequence"),
            ({"l_max": 0, "dim": 2}, "l_max must be at least 1"),
            ({"n_ssm": 2}, "n_ssm=2 must divide d_model=3"),
            ({"d_state": 7}, "d_state must be even"),
            ({"init": "diag"}, "must divide n_ssm=1"),
            ({"init": "legz"}, "measure='legz' is unknown"),
            ({"init": "diag-cube"}, "init form 'cube' is unknown"),
            ({"init": "legt"}, "needs rank 2"),
            ({"dt_min": 1.0, "dt_max": 0.1}, "0 < dt_min <= dt_max"),
            ({"disc": "euler"}, "choose from zoh, bilinear, dss"),
            ({"real_transform": "square"}, "choose from none, exp"),
            ({"out_channels": 4, "linear": False}, "pass linear=True"),
            ({"final_act": "cube", "linear": False}, "activation 'cube' is unknown"),
            ({"initializer": "cube", "linear": False}, "choose from uniform"),
            ({"precision": "fp8"}, "choose from auto, fp32"),
        ],
    )
    def test_settings(self, options: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            layer(**options)

    def test_inputs(self) -> None:
        for wrong in (image(8), image(8, 6, features=4), image(8, 6, 4)):
            with pytest.raises(ValueError, match=r"needs \(B, H, \*grid\) with H=3 and 2 axes, got"):
                layer()(wrong)

    def test_official_arguments(self) -> None:
        module = S4ND.from_official_kwargs(
            3, mode="diag", ln=False, contract_version=1, return_state=False, l_max=[4, 4]
        )
        assert module.l_max == (4, 4)
        with pytest.raises(TypeError, match="unexpected"):
            S4ND.from_official_kwargs(3, mode="diag", rank_of_tensor=2)
