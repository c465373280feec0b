"""The long convolution against a direct sum over positions, for every backend."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.s4nd import feature_blocks, long_conv_nd
from ssmvision.kernels.s4nd.args import ConvArgs, ConvRequest
from ssmvision.kernels.s4nd.config import ToeplitzConfig
from ssmvision.kernels.s4nd.toeplitz import diagonal_sums, toeplitz

BACKENDS = ("toeplitz", "fft")


def direct(u: Tensor, kernels: list[Tensor], centers: list[int], D: Tensor | None, dense: bool) -> Tensor:
    """Every output position by the sum over every input position."""
    batch, _, *grid = u.shape
    rank, channels, features, _ = kernels[0].shape
    y = torch.zeros(batch, channels, features, *grid, dtype=u.dtype)
    for i in itertools.product(*map(range, grid)):
        for j in itertools.product(*map(range, grid)):
            lags = [center + p - q for center, p, q in zip(centers, i, j, strict=True)]
            if all(0 <= lag < k.shape[-1] for lag, k in zip(lags, kernels, strict=True)):
                taps = torch.ones(rank, channels, features, dtype=u.dtype)
                for lag, k in zip(lags, kernels, strict=True):
                    taps = taps * k[..., lag]
                y[(..., *i)] += taps.sum(0) * u[(slice(None), None, slice(None), *j)]
    if dense:
        return y.sum(2)
    return y if D is None else y + D.view(channels, features, *(1,) * len(grid)) * u.unsqueeze(1)


# grid, rank, channels, taps and centers per axis, dense, batch
CASES = {
    "1d_causal": ((7,), 1, 1, (7,), (0,), False, 2),
    "1d_two_sided_rank": ((6,), 3, 2, (12,), (6,), False, 1),
    "1d_dense": ((5,), 2, 4, (10,), (5,), True, 3),
    "2d_two_sided": ((5, 4), 1, 1, (10, 8), (5, 4), False, 2),
    "2d_short_kernels": ((6, 5), 1, 1, (3, 5), (1, 2), False, 1),
    "2d_rank_channels": ((4, 3), 2, 3, (8, 6), (4, 3), False, 2),
    "2d_dense": ((3, 4), 1, 5, (6, 8), (3, 4), True, 2),
    "2d_dense_rank": ((3, 4), 2, 2, (6, 8), (3, 4), True, 1),
    "2d_anticausal": ((4, 4), 1, 1, (4, 4), (4, 4), False, 1),
    "2d_wide": ((3, 17), 1, 1, (6, 34), (3, 17), False, 2),
    "3d_two_sided": ((3, 4, 2), 1, 1, (6, 8, 4), (3, 4, 2), False, 2),
    "3d_rank_channels": ((2, 3, 4), 2, 2, (4, 6, 8), (2, 3, 4), False, 1),
    "3d_size_one_axes": ((1, 5, 1), 1, 1, (2, 9, 1), (1, 4, 0), False, 2),
}


def inputs(
    case: str, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, list[Tensor], list[int], Tensor | None, bool]:
    grid, rank, channels, taps, centers, dense, batch = CASES[case]
    generator = torch.Generator().manual_seed(len(case))
    u = torch.randn(batch, 3, *grid, generator=generator, dtype=torch.float64)
    kernels = [torch.randn(rank, channels, 3, t, generator=generator, dtype=torch.float64) for t in taps]
    D = None if dense else torch.randn(channels, 3, generator=generator, dtype=torch.float64)
    return u.to(dtype), [k.to(dtype) for k in kernels], list(centers), None if D is None else D.to(dtype), dense


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
class TestDefinition:
    def test_forward_and_gradients(self, case: str, backend: str) -> None:
        u, kernels, centers, D, dense = inputs(case)
        leaves = [u, *kernels, *([] if D is None else [D])]
        for leaf in leaves:
            leaf.requires_grad_()
        expected = direct(u, kernels, centers, D, dense)
        got = long_conv_nd(u, kernels, D, centers=centers, dense=dense, backend=backend)
        torch.testing.assert_close(got, expected)
        weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=u.dtype)
        wanted = torch.autograd.grad((expected * weight).sum(), leaves)
        for g, w in zip(torch.autograd.grad((got * weight).sum(), leaves), wanted, strict=True):
            torch.testing.assert_close(g, w)

    def test_float32_is_exact_to_rounding(self, case: str, backend: str) -> None:
        u, kernels, centers, D, dense = inputs(case, torch.float32)
        expected = direct(*inputs(case))
        got = long_conv_nd(u, kernels, D, centers=centers, dense=dense, backend=backend)
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
class TestInputs:
    def test_strides_do_not_matter(self, backend: str) -> None:
        u, kernels, centers, D, _ = inputs("2d_two_sided")
        expected = long_conv_nd(u, kernels, D, centers=centers, backend=backend)
        sliced = torch.empty(2, 3, 10, 4, dtype=u.dtype)[:, :, ::2].copy_(u)
        swapped = [k.transpose(0, 3).contiguous().transpose(0, 3) for k in kernels]
        for other in (u.to(memory_format=torch.channels_last), sliced, u.transpose(2, 3).contiguous().transpose(2, 3)):
            got = long_conv_nd(other, swapped, D, centers=centers, backend=backend)
            torch.testing.assert_close(got, expected)
            assert got.is_contiguous()

    def test_an_empty_batch_passes(self, backend: str) -> None:
        u, kernels, centers, D, _ = inputs("2d_rank_channels")
        assert long_conv_nd(u[:0], kernels, D, centers=centers, backend=backend).shape == (0, 3, 3, 4, 3)

    def test_gradients_of_a_part_of_the_inputs(self, backend: str) -> None:
        u, kernels, centers, D, _ = inputs("2d_two_sided")
        for chosen in ([u], [kernels[1]], [D]):
            for t in (u, *kernels, D):
                assert t is not None
                t.requires_grad_(any(t is c for c in chosen))
            loss = long_conv_nd(u, kernels, D, centers=centers, backend=backend).square().sum()
            grads = torch.autograd.grad(loss, chosen)
            assert all(g.shape == t.shape and g.abs().max() > 0 for g, t in zip(grads, chosen, strict=True))

    def test_the_same_call_gives_the_same_bits(self, backend: str) -> None:
        u, kernels, centers, D, _ = inputs("3d_two_sided", torch.float32)
        results = []
        for _ in range(2):
            leaves = [t.clone().requires_grad_() for t in (u, *kernels)]
            y = long_conv_nd(leaves[0], leaves[1:], D, centers=centers, backend=backend)
            results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestFeatureBlocks:
    """Maps large enough that a CPU takes them a few features at a time."""

    @pytest.mark.parametrize("grid", [(16, 18), (20, 33), (4, 16, 5), (9, 8, 7)])
    @pytest.mark.parametrize("fewest", [2, 100])
    def test_against_the_fft(self, grid: tuple[int, ...], fewest: int, monkeypatch: pytest.MonkeyPatch) -> None:
        small = ToeplitzConfig(1024, 128, 1 << 28, cached_elements=1, fewest_features=fewest)
        monkeypatch.setattr(feature_blocks, "toeplitz_config", lambda device: small)
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(3, 5, *grid, generator=generator, dtype=torch.float64)
        taps = [2 * grid[0], 3, 2 * grid[-1] - 1][: len(grid)]
        centers = [grid[0], 1, grid[-1] - 1][: len(grid)]
        kernels = [torch.randn(5, t, generator=generator, dtype=torch.float64) for t in taps]
        D = torch.randn(5, generator=generator, dtype=torch.float64)
        strided = u.transpose(1, 2).contiguous().transpose(1, 2)
        args = ConvArgs(strided, tuple(k[None, None] for k in kernels), tuple(centers), D[None], False, "auto")
        assert feature_blocks.applies(args)
        for skip in (D, None):
            leaves = [t.requires_grad_() for t in (strided, *kernels, *([] if skip is None else [skip]))]
            results = []
            for backend in ("toeplitz", "fft"):
                y = long_conv_nd(strided, kernels, skip, centers=centers, backend=backend)
                weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
                some = (
                    torch.autograd.grad((y * weight).sum(), part, retain_graph=True)
                    for part in (leaves[:1], leaves[1:])
                )
                results.append([y, *torch.autograd.grad((y * weight).sum(), leaves, retain_graph=True), *sum(some, ())])
            for found, expected in zip(*results, strict=True):
                torch.testing.assert_close(found, expected)


class TestPrecision:
    def test_half_precision_is_computed_wider(self) -> None:
        u, kernels, centers, D, _ = inputs("3d_two_sided", torch.float32)
        expected = long_conv_nd(u, kernels, D, centers=centers)
        for dtype, bound in ((torch.float16, 2e-3), (torch.bfloat16, 2e-2)):
            got = long_conv_nd(u.to(dtype), kernels, D, centers=centers)
            assert got.dtype == dtype
            assert (got.float() - expected).abs().max() < bound * expected.abs().max()

    def test_float16_survives_large_values_between_the_axes(self) -> None:
        u = torch.full((1, 1, 64, 64), 100.0, dtype=torch.float16)
        wide, narrow = torch.full((1, 64), 100.0), torch.full((1, 64), 1e-6)
        y = long_conv_nd(u, [narrow, wide])
        assert y.isfinite().all()
        assert y.max() > 30

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_volumes_survive_large_values_between_the_axes(self, dtype: torch.dtype) -> None:
        u = torch.full((1, 1, 16, 16, 16), 100.0, dtype=dtype)
        wide, narrow = torch.full((1, 16), 100.0), torch.full((1, 16), 1e-6)
        exact = long_conv_nd(u.double(), [narrow.double(), wide.double(), wide.double()])
        y = long_conv_nd(u, [narrow, wide, wide])  # 1.6e5 after one axis, 2.6e8 after two
        assert y.dtype == dtype
        assert (y.double() - exact).abs().max() < 1e-2 * exact.abs().max()

    def test_a_result_that_float16_cannot_hold_is_infinite_and_stays_where_it_is(self) -> None:
        u = torch.zeros(1, 2, 4, 4, 4, dtype=torch.float16)
        u[0, 0, 1] = 6e4
        y = long_conv_nd(u, [torch.full((2, 4), 2.0)] * 3)
        assert y[0, 0, 0, 1:, 3, 3].isinf().all()
        assert not y.isnan().any()
        assert (y[0, 0, 0, 0] == 0).all()
        assert (y[0, 0, 1] == 0).all()

    def test_bf16_products(self) -> None:
        u, kernels, centers, D, _ = inputs("2d_rank_channels", torch.float32)
        exact = long_conv_nd(u, kernels, D, centers=centers)
        low = long_conv_nd(u, kernels, D, centers=centers, precision="bf16")
        assert 0 < (low - exact).abs().max() < 0.03 * exact.abs().max()

    def test_autocast_leaves_it_alone(self) -> None:
        u, kernels, centers, D, _ = inputs("2d_two_sided", torch.float32)
        expected = long_conv_nd(u, kernels, D, centers=centers)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(long_conv_nd(u, kernels, D, centers=centers), expected)


class TestChoice:
    def test_long_axes_go_to_the_fft_and_say_so(self, caplog: pytest.LogCaptureFixture) -> None:
        u = torch.randn(1, 2, 1500, dtype=torch.float64)
        kernel = torch.randn(2, 20, dtype=torch.float64)
        with caplog.at_level(logging.INFO, logger="ssmvision"):
            y = long_conv_nd(u, [kernel])
        assert "backend 'fft' (" in caplog.text
        assert "toeplitz: an axis of 1500 is longer than 128" in caplog.text
        flipped = kernel.flip(-1).unsqueeze(1)
        expected = torch.nn.functional.conv1d(torch.nn.functional.pad(u, (19, 0)), flipped, groups=2)
        torch.testing.assert_close(y[:, 0], expected)
        torch.testing.assert_close(long_conv_nd(u, [kernel], backend="toeplitz")[:, 0], expected)

    def test_shapes_decide(self) -> None:
        def runs(*grid: int, systems: int = 64) -> str:
            return registry.choose("long_conv_nd", ConvRequest("cpu", torch.float32, grid, systems)).name

        assert runs(56, 56) == runs(128, 128, 128) == runs(100) == "toeplitz"
        assert runs(196) == runs(2000, 8) == runs(1000, 1000, systems=1000) == "fft"

    def test_the_environment_may_ask_for_the_slow_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        u, kernel = torch.randn(1, 2, 200), torch.randn(2, 20)
        by_name = {name: long_conv_nd(u, [kernel], backend=name) for name in BACKENDS}
        assert not torch.equal(by_name["toeplitz"], by_name["fft"])
        assert torch.equal(long_conv_nd(u, [kernel]), by_name["fft"])
        monkeypatch.setenv("SSMVISION_BACKEND", "toeplitz")
        assert torch.equal(long_conv_nd(u, [kernel]), by_name["toeplitz"])

    def test_a_forbidden_backend_is_not_used(self) -> None:
        u, kernels, centers, D, _ = inputs("2d_two_sided")
        with pytest.raises(registry.NoBackendError, match="forbidden"):
            long_conv_nd(u, kernels, D, centers=centers, backend="-toeplitz,-fft")


class TestErrors:
    def test_a_kernel_longer_than_its_axis(self) -> None:
        with pytest.raises(ValueError, match=r"kernels\[1\] reaches 5 taps .* axis of 4"):
            long_conv_nd(torch.zeros(1, 2, 4, 4), [torch.zeros(2, 4), torch.zeros(2, 5)])
        for center in (5, 2):  # to the left of lag 0, or to the right
            with pytest.raises(
                ValueError, match=r"kernels\[2\] reaches 5 taps to one side.* cut it to at most 4 a side"
            ):
                long_conv_nd(
                    torch.zeros(1, 2, 4, 4, 4), [torch.zeros(2, 4)] * 2 + [torch.zeros(2, 7)], centers=[0, 0, center]
                )

    @pytest.mark.parametrize(
        ("u", "kernels", "options", "message"),
        [
            (torch.zeros(1, 2, 4), [torch.zeros(2, 4)] * 2, {}, "u has 1 axes, but there are 2 kernels"),
            (torch.zeros(1, 2), [torch.zeros(2, 4)], {}, "1 to 3 axes"),
            (torch.zeros(1, 2, 4), [torch.zeros(3, 4)], {}, "its features u's, 2"),
            (torch.zeros(1, 2, 4), [torch.zeros(4)], {}, r"must be \(H, T\)"),
            (torch.zeros(1, 2, 4), [torch.zeros(2, 4)], {"centers": 5}, "lies outside"),
            (torch.zeros(1, 2, 4), [torch.zeros(2, 4)], {"D": torch.zeros(3)}, "D must be"),
            (torch.zeros(1, 2, 4), [torch.zeros(2, 4)], {"D": torch.zeros(2), "dense": True}, "no skip"),
            (torch.zeros(1, 2, 4), [torch.zeros(2, 4)], {"precision": "fp8"}, "choose from auto, fp32"),
        ],
    )
    def test_shapes_that_do_not_fit(self, u: Tensor, kernels: list[Tensor], options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            long_conv_nd(u, kernels, **options)

    def test_integers(self) -> None:
        with pytest.raises(TypeError, match="floating-point"):
            long_conv_nd(torch.zeros(1, 2, 4, dtype=torch.int64), [torch.zeros(2, 4)])

    def test_second_derivatives(self) -> None:
        u = torch.randn(1, 2, 4, requires_grad=True)
        (grad,) = torch.autograd.grad(long_conv_nd(u, [torch.ones(2, 4)]).square().sum(), u, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.sum().backward()

    def test_vmap(self) -> None:
        with pytest.raises(NotImplementedError, match="vmap"):
            torch.vmap(lambda u: long_conv_nd(u, [torch.ones(2, 4)]))(torch.zeros(3, 1, 2, 4))


def test_diagonal_sums_transpose_toeplitz() -> None:
    kernel = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    matrix = torch.randn(2, 4, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad((toeplitz(kernel, 3, 4) * matrix).sum(), kernel)
    torch.testing.assert_close(diagonal_sums(matrix, 3, 5), expected)


def test_the_operator_keeps_its_contract() -> None:
    u, kernels, centers, D, dense = inputs("2d_rank_channels", torch.float32)
    for t in (u, *kernels, D):
        assert t is not None
        t.requires_grad_()
    arguments = (u, kernels, centers, D, dense, "auto", "auto")
    torch.library.opcheck(torch.ops.ssmvision.long_conv_nd.default, arguments)
