"""The convolution's CUDA backend for planes on a GPU: against float64, in place on views, repeatable, capturable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.s4nd import cuda, fft, long_conv_nd
from ssmvision.kernels.s4nd.args import ConvArgs, Grads

pytestmark = pytest.mark.gpu

# B, H, grid: ConvNeXt's four, odd ones, one row, one column, one image, many images; planes that take a block.
CASES = [
    (5, 6, (56, 56)), (9, 6, (28, 28)), (9, 6, (14, 14)), (9, 6, (7, 7)), (5, 3, (13, 13)), (5, 3, (7, 9)),
    (5, 3, (1, 16)), (5, 3, (16, 1)), (5, 3, (1, 1)), (3, 2, (64, 64)), (1, 5, (20, 5)), (300, 1, (10, 12)),
    (3, 2, (96, 96)), (3, 2, (128, 128)), (5, 3, (67, 30)), (2, 3, (9, 127)), (2, 3, (65, 1)),
]  # fmt: skip
# Relative error by norm: operands and what lies between the axes are bfloat16; D's gradient is summed from its factors.
# Of a single row or column, lags other than 0 have no gradient, and that of 0 is a small sum of many terms.
LIMITS = {"out": 6e-3, "u": 6e-3, "kernel0": 1e-2, "kernel1": 1e-2, "D": 1e-5}


def make(case: tuple[int, int, tuple[int, int]], taps: str = "even", skip: bool = True) -> tuple[ConvArgs, Tensor]:
    """Inputs with kernels as long as the axes to both sides, one-sided ones or short ones, and dout."""
    batch, features, grid = case
    g = torch.Generator("cuda").manual_seed(0)

    def rand(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, device="cuda")

    sides = {"even": [(n, n) for n in grid], "causal": [(0, n) for n in grid], "short": [(n // 3, 1) for n in grid]}
    kernels, centers = [], []
    for before, after in sides[taps]:
        lags = torch.arange(-before, after, device="cuda")
        kernels.append(rand(1, 1, features, before + after) * torch.exp(-4 * lags.abs() / (after + before)))
        centers.append(before)
    u, dout = rand(batch, features, *grid).bfloat16(), rand(batch, 1, features, *grid).bfloat16()
    return ConvArgs(u, tuple(kernels), tuple(centers), rand(1, features) if skip else None, False, "auto"), dout


def named(out: Tensor, grads: Grads) -> dict[str, Tensor]:
    assert grads.u is not None
    assert grads.kernels is not None
    kernels = {f"kernel{a}": kernel for a, kernel in enumerate(grads.kernels)}
    return {"out": out, "u": grads.u, **kernels, **({} if grads.D is None else {"D": grads.D})}


def run(args: ConvArgs, dout: Tensor) -> dict[str, Tensor]:
    return named(cuda.forward(args), cuda.backward(args, dout, True, True))


def exact(args: ConvArgs, dout: Tensor) -> dict[str, Tensor]:
    kernels = tuple(kernel.double() for kernel in args.kernels)
    skip = None if args.D is None else args.D.double()
    wide = args._replace(u=args.u.double(), kernels=kernels, D=skip)
    return named(fft.forward(wide), fft.backward(wide, dout.double(), True, True))


def check(args: ConvArgs, dout: Tensor) -> None:
    found, expected = run(args, dout), exact(args, dout)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        error = float((found[name].double() - value).norm() / value.norm().clamp_min(1e-30))
        assert error <= LIMITS[name], (name, error)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case: tuple[int, int, tuple[int, int]]) -> None:
    check(*make(case))


@pytest.mark.parametrize("taps", ["causal", "short"])
def test_other_kernels_match_float64(taps: str) -> None:
    check(*make((3, 4, (14, 20)), taps))
    check(*make((3, 4, (14, 20)), taps, skip=False))


def test_bfloat16_kernels_match_float64() -> None:
    args, dout = make(CASES[2])
    assert args.D is not None
    check(args._replace(kernels=tuple(k.bfloat16() for k in args.kernels), D=args.D.bfloat16()), dout)


@pytest.mark.parametrize("grid", [(56, 56), (14, 14), (7, 7), (70, 20)], ids=str)
def test_views_are_read_in_place(grid: tuple[int, int]) -> None:
    """Slices of channels, rows and columns, images backwards in memory order, and channels-last maps."""
    args, dout = make((4, 6, grid))
    whole = torch.randn(4, 9, grid[0] + 3, grid[1] + 5, device="cuda").bfloat16()
    views = [
        whole[:, 2:8, 1 : grid[0] + 1, : grid[1]],
        whole[:, 2:8, 1 : grid[0] + 1, 3 : grid[1] + 3],
        args.u.transpose(0, 1).contiguous().transpose(0, 1),
        args.u.to(memory_format=torch.channels_last),
        args.u.transpose(2, 3),
    ]
    for view in views:
        found = run(args._replace(u=view), dout)
        expected = run(args._replace(u=view.contiguous()), dout)
        assert all(torch.equal(found[name], expected[name]) for name in found)
    strided = dout.to(memory_format=torch.channels_last_3d)
    found, expected = run(args, strided), run(args, dout)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("grid", [(56, 56), (7, 7), (80, 72)], ids=str)
def test_repeats_bitwise(grid: tuple[int, int]) -> None:
    args, dout = make((40, 30, grid))
    first = run(args, dout)
    for _ in range(3):
        assert all(torch.equal(value, first[name]) for name, value in run(args, dout).items())


def test_a_bad_image_spoils_no_other() -> None:
    """An infinity, and what overflows bfloat16, stay with their plane."""
    args, _ = make((6, 2, (13, 13)))
    clean = cuda.forward(args)
    u = args.u.clone()
    u[2, 1, 5, 5], u[3, 0, 12, 12] = torch.inf, 3e38
    spoilt = cuda.forward(args._replace(u=u))
    for b, h in ((b, h) for b in range(6) for h in range(2)):
        same = torch.equal(spoilt[b, 0, h], clean[b, 0, h])
        assert same == ((b, h) not in ((2, 1), (3, 0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_other_dtypes_with_bfloat16_products(dtype: torch.dtype) -> None:
    args, dout = make(CASES[2])
    expected = run(args, dout)
    found = run(args._replace(u=args.u.to(dtype), precision="bf16"), dout.to(dtype))
    assert found["out"].dtype == dtype
    torch.testing.assert_close(found["out"].float(), expected["out"].float(), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in ("u", "kernel0", "kernel1", "D"))


def test_gradients_that_nobody_wants_are_not_made() -> None:
    args, dout = make(CASES[1])
    every = run(args, dout)
    grads = cuda.backward(args, dout, False, True)
    assert grads.u is None
    assert grads.kernels is not None
    assert all(torch.equal(kernel, every[f"kernel{a}"]) for a, kernel in enumerate(grads.kernels))
    grads = cuda.backward(args, dout, True, False)
    assert grads.kernels is None
    assert grads.u is not None
    assert torch.equal(grads.u, every["u"])


def test_is_chosen_captured_and_trained_with() -> None:
    args, dout = make((8, 6, (28, 28)))
    assert args.D is not None
    leaves = [t.detach().requires_grad_() for t in (args.u, *(kernel[0, 0] for kernel in args.kernels), args.D[0])]

    def step() -> list[Tensor]:
        u, ky, kx, D = leaves
        y = long_conv_nd(u, [ky, kx], D, centers=list(args.centers), backend="cuda")
        return [y, *torch.autograd.grad(y, leaves, dout)]

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        dout = dout.clone()
        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            found = step()
        graph.replay()
    side.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
