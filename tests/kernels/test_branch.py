"""The branch operators against plain PyTorch, and their Triton kernels as far as a machine without a GPU shows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.branch import add_branch, norm_map
from ssmvision.kernels.branch import triton as backend
from ssmvision.kernels.branch.config import MAX_CHANNELS
from ssmvision.kernels.branch.op import NORM, SUM, branch_norm, branch_sum
from ssmvision.kernels.registry import Request, explain
from tests.kernels.triton_launches import compile_all

GRIDS = [(), (7,), (3, 4), (1, 1), (2, 3, 2)]


def rand(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + len(shape)), dtype=torch.float64).to(
        dtype
    )


@pytest.mark.parametrize("grid", GRIDS)
class TestDefinition:
    def test_norm(self, grid: tuple[int, ...]) -> None:
        x, weight, bias = rand(2, 5, *grid), rand(5), rand(5, seed=1)
        expected = F.layer_norm(x.movedim(1, -1), (5,), weight, bias, 1e-3)
        tokens = norm_map(x, weight, bias, 1e-3)
        torch.testing.assert_close(tokens, expected)
        torch.testing.assert_close(norm_map(x, weight, bias, 1e-3, channels_last=False), expected.movedim(-1, 1))
        assert tokens.is_contiguous()
        for last in (True, False):
            leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
            assert torch.autograd.gradcheck(lambda *t, last=last: norm_map(*t, 1e-3, last), leaves)

    def test_sum(self, grid: tuple[int, ...]) -> None:
        x, tokens, gamma = rand(2, 5, *grid), rand(2, *grid, 5, seed=1), rand(5, seed=2)
        keep = torch.tensor([0.0, 2.0])
        scaled = tokens * gamma * keep.double().view(2, *(1,) * (len(grid) + 1))
        total, copy = add_branch(x, tokens, gamma, keep)
        torch.testing.assert_close(total, x + scaled.movedim(-1, 1))
        assert copy is None
        torch.testing.assert_close(add_branch(x, tokens)[0], x + tokens.movedim(-1, 1))
        leaves = [t.clone().requires_grad_() for t in (x, tokens, gamma)]
        assert torch.autograd.gradcheck(lambda *t: add_branch(*t, keep, torch.float64), leaves)
        assert torch.autograd.gradcheck(lambda *t: add_branch(*t, None, keep)[0], leaves[:2])


class TestCopies:
    def test_gradients_of_sum_and_copy_meet(self) -> None:
        x, tokens = rand(1, 3, 4).requires_grad_(), rand(1, 4, 3)
        total, copy = add_branch(x, tokens, copy_dtype=torch.bfloat16)
        assert copy is not None
        assert copy.dtype == torch.bfloat16
        torch.testing.assert_close(copy, total.to(torch.bfloat16))
        for loss, expected in ((total.sum() + 2 * copy.sum(), 3.0), (total.sum(), 1.0), (2 * copy.sum(), 2.0)):
            (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
            torch.testing.assert_close(grad, torch.full_like(x, expected))


class TestPrecision:
    def test_bfloat16_maps_are_normed_in_float32(self) -> None:
        x, weight, bias = rand(2, 64, 9, dtype=torch.bfloat16), rand(64).float(), rand(64, seed=1).float()
        exact = F.layer_norm(x.double().movedim(1, -1), (64,), weight.double(), bias.double(), 1e-6)
        y = norm_map(x, weight, bias)
        assert y.dtype == torch.float32
        assert (y - exact).abs().max() < 1e-5

    def test_autocast_decides_the_result(self) -> None:
        x, weight, bias = rand(2, 4, 9).float(), rand(4).float(), rand(4, seed=1).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert norm_map(x, weight, bias).dtype == torch.bfloat16
            assert norm_map(x, weight, bias, out_dtype=torch.float32).dtype == torch.float32

    def test_a_low_precision_branch_joins_a_float32_stream(self) -> None:
        x, tokens, gamma = rand(2, 4, 9).float(), rand(2, 9, 4, dtype=torch.bfloat16), rand(4).float()
        assert add_branch(x, tokens, gamma)[0].dtype == torch.float32
        assert add_branch(x.bfloat16(), tokens, gamma)[0].dtype == torch.float32
        assert add_branch(x.bfloat16(), tokens)[0].dtype == torch.bfloat16


class TestInputs:
    def test_strides_do_not_matter(self) -> None:
        x, weight, bias = rand(2, 4, 3, 5), rand(4), rand(4, seed=1)
        other = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(norm_map(other, weight, bias), norm_map(x, weight, bias))
        tokens = rand(2, 3, 5, 4)
        turned = tokens.transpose(1, 2).contiguous().transpose(1, 2)
        torch.testing.assert_close(add_branch(other, turned)[0], add_branch(x, tokens)[0])

    def test_an_empty_batch_passes(self) -> None:
        x = torch.zeros(0, 4, 3)
        assert norm_map(x, torch.ones(4), torch.zeros(4)).shape == (0, 3, 4)
        assert add_branch(x, torch.zeros(0, 3, 4))[0].shape == (0, 4, 3)

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: norm_map(torch.zeros(3), torch.ones(3), torch.ones(3)), r"x must be \(B, C, \*grid\)"),
            (lambda: norm_map(torch.zeros(1, 4, 2), torch.ones(3), torch.ones(4)), r"weight must have shape \(4,\)"),
            (lambda: norm_map(torch.zeros(1, 4, 2), torch.ones(4), torch.ones(2)), r"bias must have shape \(4,\)"),
            (lambda: add_branch(torch.zeros(1, 4, 2), torch.zeros(1, 4, 2)), r"branch must be \(B, \*grid, C\)"),
            (lambda: add_branch(torch.zeros(1, 4, 2), torch.zeros(1, 2, 4), torch.ones(2)), r"gamma must have shape"),
            (
                lambda: add_branch(torch.zeros(1, 4, 2), torch.zeros(1, 2, 4), keep=torch.ones(2)),
                r"keep must have shape \(1,\)",
            ),
            (
                lambda: add_branch(torch.zeros(1, 4, 2), torch.zeros(1, 2, 4), keep=torch.ones(1).double()),
                "keep must be float32 without gradient",
            ),
            (lambda: norm_map(torch.zeros(1, 4, 2), torch.ones(4, device="meta"), torch.ones(4)), "weight is on meta"),
        ],
    )
    def test_what_does_not_fit(self, call: object, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()  # type: ignore[operator]

    def test_integers(self) -> None:
        with pytest.raises(TypeError, match="x must be a real floating-point tensor"):
            norm_map(torch.zeros(1, 4, 2, dtype=torch.int64), torch.ones(4), torch.ones(4))


def test_the_operators_keep_their_contract() -> None:
    x, weight, bias = rand(2, 4, 6).float(), rand(4).float(), rand(4, seed=1).float()
    tokens, keep = rand(2, 6, 4).float(), torch.ones(2)
    for t in (x, weight, bias, tokens):
        t.requires_grad_()
    torch.library.opcheck(branch_norm.operator, (x, weight, bias, 1e-6, torch.float32, True, "auto"))
    torch.library.opcheck(branch_sum.operator, (x, tokens, weight, keep, torch.float32, torch.bfloat16, "auto"))


def test_why_triton_is_refused() -> None:
    for op in (NORM, SUM):
        assert explain(op, Request("cpu"))["triton"] == "cpu is no GPU that triton compiles for"
    assert not backend.fits(MAX_CHANNELS + 1)


@pytest.mark.parametrize(("channels", "dtype"), [(96, torch.bfloat16), (768, torch.float32)])
def test_kernels_compile(channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x, tokens = torch.zeros(1, channels, 20, dtype=dtype), torch.zeros(1, 20, channels, dtype=dtype)
    weight, keep, stream = torch.zeros(channels), torch.zeros(1), torch.zeros(1, channels, 20)

    def launch() -> None:
        _, mean, rstd = backend.norm_forward(x, weight, weight, 1e-6, dtype, True)
        backend.norm_backward(x, weight, mean, rstd, tokens, True)
        backend.sum_forward(stream, tokens, weight, keep, torch.float32, dtype)
        backend.sum_backward(tokens, weight, keep, stream, x)
        backend.sum_backward(tokens, None, None, stream, None)

    names = compile_all(backend, launch, monkeypatch)
    assert names == ["norm_forward", "norm_backward", "sum_forward", "sum_backward", "sum_backward"]
