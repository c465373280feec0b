"""1D kernels against the linear systems that they are impulse responses of, and the HiPPO matrices' structure."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.s4nd.discretize import diagonal_kernel, diagonal_modes, inverse_positive, positive, tile
from ssmvision.kernels.s4nd.hippo import hippo_matrices, low_rank_correction, measures, nplr
from ssmvision.kernels.s4nd.init import MIXTURES, initial_system
from ssmvision.kernels.s4nd.linear_system import impulse_response
from ssmvision.kernels.s4nd.pairs import Pair, add, conj, div, exp, expm1, from_last_axis, mul, scale, to_last_axis
from ssmvision.layers.s4nd_dense import DenseKernel
from ssmvision.layers.s4nd_diagonal import S4DKernel
from ssmvision.layers.s4nd_dplr import S4Kernel
from ssmvision.layers.s4nd_ema import EMAKernel
from ssmvision.layers.s4nd_kernel import AxisKernel, generate

COMMON = {"d_state": 8, "dt_min": 0.05, "dt_max": 0.5}


def pair(seed: int, *shape: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    re, im = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return Pair(re, im)


def joined(a: Pair) -> Tensor:
    return torch.complex(a.re, a.im)


class TestPairs:
    def test_arithmetic_is_complex_arithmetic(self) -> None:
        a, b = pair(0, 5), pair(1, 5)
        x, y = joined(a), joined(b)
        expected = [x + y, x * y, x / y, x.conj(), torch.exp(x), torch.exp(x) - 1, 2 * x]
        got = [add(a, b), mul(a, b), div(a, b), conj(a), exp(a), expm1(a), scale(a, 2.0)]
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(joined(g), e)
        torch.testing.assert_close(torch.view_as_complex(to_last_axis(a)), x)
        torch.testing.assert_close(joined(from_last_axis(torch.view_as_real(x))), x)

    def test_expm1_is_accurate_near_zero(self) -> None:
        tiny = Pair(torch.tensor(1e-12, dtype=torch.float64), torch.tensor(-2e-12, dtype=torch.float64))
        got = expm1(tiny)
        assert float(got.re) == pytest.approx(1e-12, rel=1e-9)
        assert float(got.im) == pytest.approx(-2e-12, rel=1e-9)


class TestTransforms:
    @pytest.mark.parametrize("transform", ["none", "exp", "sigmoid", "softplus"])
    def test_round_trip(self, transform: str) -> None:
        values = torch.tensor([1e-3, 0.2, 0.9], dtype=torch.float64)
        torch.testing.assert_close(positive(inverse_positive(values, transform), transform), values)
        assert positive(inverse_positive(torch.zeros(1), transform), transform) >= 0.9e-4

    def test_relu_adds_its_floor_once_more(self) -> None:
        assert float(positive(inverse_positive(torch.tensor(0.5), "relu"), "relu")) == pytest.approx(0.5001)

    def test_large_values_do_not_overflow(self) -> None:
        assert float(inverse_positive(torch.tensor(500.0), "softplus")) == pytest.approx(500.0)

    def test_tile_repeats_whole_rows(self) -> None:
        rows = torch.arange(2.0).unsqueeze(-1)
        assert tile(rows, 6).flatten().tolist() == [0, 1, 0, 1, 0, 1]


class TestHippo:
    @pytest.mark.parametrize("measure", ["legs", "legt", "lagt", "fourier", "fourier_decay", "fourier_diag", "legsd"])
    def test_the_normal_form_is_the_matrix(self, measure: str) -> None:
        """V (diag(W) - P P^*) V^* with its conjugate half is A, for every measure and its zero-frequency pair."""
        rank = 2 if measure == "legt" else 1
        A, B = hippo_matrices(measure, 12)
        W, P, b, V = nplr(measure, 12, rank, b_clip=None)
        V_full, P_full = torch.cat((V, V.conj()), 1), torch.cat((P, P.conj()), 1)
        system = torch.diag(torch.cat((W, W.conj()))) - P_full.T @ P_full.conj()
        torch.testing.assert_close((V_full @ system @ V_full.conj().T).real, A)
        torch.testing.assert_close((V_full @ torch.cat((b, b.conj()))).real, B)
        torch.testing.assert_close(V_full.conj().T @ V_full, torch.eye(12, dtype=V.dtype))

    def test_clipping(self) -> None:
        assert nplr("legs", 16, b_clip=None).B.imag.abs().max() > 2
        assert nplr("legs", 16).B.imag.abs().max() == 2

    def test_errors(self) -> None:
        assert {"legs", "fout", "lmu"} <= set(measures())
        for call, message in (
            (lambda: hippo_matrices("hermite", 8), "'hermite' is unknown"),
            (lambda: hippo_matrices("fourier", 7), "even for Fourier"),
            (lambda: low_rank_correction("lmu", 8), "no normal-plus-low-rank form"),
            (lambda: low_rank_correction("legt", 8), "needs rank 2"),
            (lambda: nplr("legs", 7), "even order"),
        ):
            with pytest.raises(ValueError, match=message):
                call()


class TestInit:
    @pytest.mark.parametrize("init", ["legs", "diag-lin", "diag-inv", "diag-inv2", "diag-real", "diag-quad",
                                      "diag-rand", "diag-legs", "dplr-lin", "dplr-legs", *MIXTURES])  # fmt: skip
    def test_every_system_is_stable(self, init: str) -> None:
        A, P, B, V = initial_system(init, 16, copies=4)
        assert A.shape == B.shape == (4, 8)
        assert P.shape == (1, 4, 8)
        assert V.shape == (4, 16, 8)
        assert (A.real < 1e-9).all()
        assert (A.imag <= 1e-9).all()

    def test_only_dplr_has_a_low_rank_part(self) -> None:
        assert initial_system("diag-lin", 8).P.abs().max() == 0
        assert initial_system("dplr-lin", 8).P.abs().max() > 0
        assert initial_system("dplr-lin", 8, P_scale=0.0).P.abs().max() == 0

    def test_input_matrices(self) -> None:
        assert initial_system("diag-lin", 8, B_init="alternating").B.real.tolist() == [[1, -1, 1, -1]]
        turning = initial_system("diag-lin", 8, B_init="unit-cw").B[0]
        torch.testing.assert_close(turning[1], torch.exp(torch.tensor(-2j * math.pi / 8, dtype=turning.dtype)))
        torch.testing.assert_close(initial_system("diag-lin", 8, B_init="unit-ccw").B[0], turning.conj().resolve_conj())
        assert initial_system("diag-lin", 8, B_init="random", B_scale=0.0).B.abs().max() == 0
        with pytest.raises(ValueError, match="choose from constant"):
            initial_system("diag-lin", 8, B_init="ones")

    def test_scales_random_parts_and_normalization(self) -> None:
        plain, scaled = initial_system("diag-lin", 8), initial_system("diag-lin", 8, real_scale=2.0, imag_scale=3.0)
        torch.testing.assert_close(scaled.A.real, 2 * plain.A.real)
        torch.testing.assert_close(scaled.A.imag, 3 * plain.A.imag)
        random = initial_system("diag-real", 8, real_random=True).A
        assert (-random.real >= 0).all()
        assert random.imag.abs().max() == 0
        assert (-initial_system("diag-inv", 8, imag_random=True).A.imag).unique().numel() == 4
        normal = initial_system("diag-lin", 8, normalize=True)
        torch.testing.assert_close(2 * (normal.B / normal.A).abs().square().sum(), torch.tensor(1.0).double())


def kernel(name: str) -> AxisKernel:
    torch.manual_seed(0)
    made = {
        "zoh": lambda: S4DKernel(3, channels=2, **COMMON),
        "bilinear": lambda: S4DKernel(3, channels=2, disc="bilinear", n_ssm=1, init="diag-inv", **COMMON),
        "dss": lambda: S4DKernel(3, channels=2, disc="dss", **COMMON),
        "untied": lambda: S4DKernel(3, dt_tie=False, **COMMON),
        "band": lambda: S4DKernel(3, bandlimit=0.3, init="diag-lin", **COMMON),
        "real": lambda: S4DKernel(3, is_real=True, init="diag-real", **COMMON),
        "s4": lambda: S4Kernel(3, channels=2, **COMMON),
        "s4_rank2": lambda: S4Kernel(3, init="legt", rank=2, **COMMON),
        "s4_rank3": lambda: S4Kernel(3, init="dplr-lin", rank=3, P_scale=0.3, **COMMON),
        "s4_fitted": lambda: S4Kernel(3, channels=2, l_max=11, **COMMON),
        "ema": lambda: EMAKernel(3, 4),
        "dense": lambda: DenseKernel(3, channels=2, **COMMON),
    }
    return made[name]().double()


NAMES = ["zoh", "bilinear", "dss", "untied", "band", "real", "s4", "s4_rank2", "s4_rank3", "s4_fitted", "ema", "dense"]


class TestKernels:
    @pytest.mark.parametrize("length", [1, 2, 11, 16])
    @pytest.mark.parametrize("name", NAMES)
    def test_it_is_the_impulse_response(self, name: str, length: int) -> None:
        module = kernel(name)
        taps = module(length)
        assert taps.shape == (module.channels, 3, length)
        torch.testing.assert_close(taps, impulse_response(module.system(length), length))

    # S4 at another rate is an approximation, whose values the goldens hold; EMA has no rate.
    @pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith(("s4", "ema"))])
    def test_rates_scale_the_step(self, name: str) -> None:
        module = kernel(name)
        torch.testing.assert_close(module(8, 0.5), impulse_response(module.system(8, 0.5), 8))

    @pytest.mark.parametrize("name", NAMES)
    def test_single_precision_is_close(self, name: str) -> None:
        module = kernel(name)
        exact = module(16)
        assert (module.float()(16) - exact).abs().max() < 1e-3 * exact.abs().max()

    @pytest.mark.parametrize("name", NAMES)
    def test_every_parameter_has_a_finite_gradient(self, name: str) -> None:
        module = kernel(name)
        module(9).square().sum().backward()
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
            assert parameter.grad.abs().max() > 0, key

    def test_batches_hold_what_single_calls_make(self) -> None:
        modules = [kernel(n) for n in ("zoh", "s4", "zoh", "bilinear", "s4", "dss", "ema", "dense", "zoh")]
        modules[2].load_state_dict({k: v + 0.1 for k, v in modules[2].state_dict().items()})
        lengths, rates = [9, 7, 5, 8, 7, 6, 4, 3, 9], [1.0, 1.0, 2.0, 1.0, 1.0, 0.5, 1.0, 1.0, 0.5]
        for got, module, length, rate in zip(generate(modules, lengths, rates), modules, lengths, rates, strict=True):
            torch.testing.assert_close(got, module(length, rate))

    def test_band_limit_drops_modes(self) -> None:
        limited, free = kernel("band"), kernel("band")
        free.bandlimit = None
        assert not torch.allclose(limited(8), free(8))
        limited.bandlimit = 1e6
        torch.testing.assert_close(limited(8), free(8))

    def test_initial_outputs_have_unit_power_and_steps_their_range(self) -> None:
        torch.manual_seed(0)
        module = S4DKernel(256, 16, dt_min=0.01, dt_max=1.0)
        assert float(module.C.detach().square().sum(-1).mean()) == pytest.approx(1, abs=0.05)
        dt = torch.exp(module.inv_dt.detach())
        assert 0.01 <= float(dt.min()) < 0.02
        assert 0.5 < float(dt.max()) <= 1.0
        assert float(dt.median()) == pytest.approx(0.1, rel=0.3)

    def test_growing_modes_of_dss_stay_bounded(self) -> None:
        dt = torch.full((1, 1), 0.5, dtype=torch.float64)
        A = Pair(torch.tensor([[3.0]]).double(), torch.tensor([[-1.0]]).double())
        weight = Pair(torch.ones(1, 1, 1).double(), torch.zeros(1, 1, 1).double())
        taps = diagonal_kernel(dt, A, weight, 200, "dss")
        assert taps.isfinite().all()
        assert taps.abs().max() < 1
        with pytest.raises(ValueError, match="needs the kernel's length"):
            diagonal_modes(dt, A, weight, "dss")

    def test_what_has_no_meaning_is_refused(self) -> None:
        with pytest.raises(ValueError, match="rate must be positive"):
            kernel("zoh")(4, -1.0)
        with pytest.raises(ValueError, match="modes"):
            EMAKernel(3, 4, channels=2).system()
        with pytest.raises(ValueError, match="bilinear rule only"):
            S4Kernel(3, disc="zoh")
        with pytest.raises(ValueError, match="use dt_tie=True"):
            S4Kernel(3, dt_tie=False, **COMMON).system()
