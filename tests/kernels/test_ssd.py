"""The chunked SSD against its loop, and against the selective scan, which it is with fewer decays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision import flops
from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.ssd import chunked, ssd_nd
from ssmvision.kernels.ssd.op import ssd
from ssmvision.kernels.ssd.reference import ssd_nd_reference

pytestmark = pytest.mark.usefixtures("one_thread")

H, P, G, N = 4, 3, 2, 5


def operands(grid: tuple[int, ...], routes: int, step: float = 1.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draw, dtype=torch.float64)

    tensors = [normal(2, *grid, H, P), step * uniform(2, routes, *grid, H), -0.1 - uniform(routes, H)]
    tensors += [normal(2, routes, *grid, G, N), normal(2, routes, *grid, G, N), normal(routes, H)]
    return [t.to(dtype).requires_grad_() for t in tensors]


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize(
    ("grid", "routes", "step"),
    [
        ((1,), ("forward",), 1.0),
        ((65,), ("forward", "backward"), 1.0),
        ((13, 11), ("row", "column_reverse", "skip_odd_even"), 30.0),
        ((3, 5, 5), ("hwd_reverse", "inter_slice"), 0.01),
    ],
    ids=str,
)
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_values_and_gradients_are_the_loops(grid: Any, routes: Any, step: float, merge: Any) -> None:
    tensors = operands(grid, len(routes), step)
    found, expected = ssd_nd(*tensors, routes=routes, merge=merge), ssd_nd_reference(*tensors, routes, merge)
    assert relative(found, expected) < 1e-12
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    for ours, theirs in zip(*(torch.autograd.grad(y, tensors, weights) for y in (found, expected)), strict=True):
        assert relative(ours, theirs) < 1e-12 if theirs.any() else not ours.any()


def test_many_chunks_and_no_skip() -> None:
    x, delta, A, B, C, _ = (t.detach() for t in operands((4200,), 1, 0.05))
    tensors = [t[:1] for t in (x, delta)] + [A] + [t[:1] for t in (B, C)]
    found, expected = ssd_nd(*tensors, routes=("forward",)), ssd_nd_reference(*tensors, None, ("forward",), "sum")
    assert relative(found, expected) < 1e-12


def test_is_the_selective_scan_with_one_decay_a_head() -> None:
    routes = ("row_reverse", "column")
    x, delta, A, B, C, D = operands((5, 7), 2)
    each = ssd_nd(x, delta, A, B[..., :1, :], C[..., :1, :], D, routes=routes)
    scanned = selective_scan_nd(
        x.flatten(-2),
        delta.repeat_interleave(P, -1),
        A.repeat_interleave(P, -1).unsqueeze(-1).expand(-1, -1, N),
        B[..., 0, :],
        C[..., 0, :],
        D.repeat_interleave(P, -1),
        routes=routes,
    )
    assert isinstance(scanned, Tensor)
    assert relative(each.flatten(-2), scanned) < 1e-12


def test_a_step_that_forgets_all_costs_the_next_ones_no_digits() -> None:
    tensors = operands((64,), 1, 0.01)
    with torch.no_grad():
        tensors[1][:, :, 3::8] = 1e4
    exact = ssd_nd_reference(*tensors, ("forward",), "sum")
    single = ssd_nd(*(t.float() for t in tensors), routes=("forward",))
    assert relative(single.double(), exact) < 1e-6


def test_half_precision_is_computed_in_single() -> None:
    half = operands((70,), 1, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        y = ssd_nd(*half, routes=("forward",))
    exact = ssd_nd(*(t.double() for t in half), routes=("forward",))
    assert y.dtype == torch.bfloat16
    assert relative(y.double(), exact) < 2**-8
    grads = torch.autograd.grad(y.sum(), half)
    for ours, theirs in zip(grads, torch.autograd.grad(exact.sum(), half), strict=True):
        assert ours.dtype == torch.bfloat16
        assert relative(ours.double(), theirs.double()) < 2**-6


def test_products_of_half_precision_lose_no_more_than_their_operands() -> None:
    """As on CUDA, where matrix products of bfloat16 tensors run in bfloat16."""
    x, delta, A, B, C, _ = (t.detach() for t in operands((70,), 1))
    u = (x * delta[:, 0].unsqueeze(-1)).view(2, 2, 35, 2, 2, 3).movedim(2, 4)
    a = (delta[:, 0] * A).view(2, 2, 35, 2, 2).movedim(2, 4)
    chunks = chunked.Chunks(u, a, *(t[:, 0].view(2, 2, 35, 2, 5).transpose(2, 3) for t in (B, C)))
    low = chunked.Chunks(*(t if t is a else t.bfloat16() for t in chunks))
    exact, half = chunked.forward(chunks), chunked.forward(low)
    assert half.dtype == torch.bfloat16
    assert 0 < relative(half, exact) < 2**-7
    wanted, found = chunked.backward(chunks, exact), chunked.backward(low, exact.bfloat16())
    for ours, theirs in zip(found, wanted, strict=True):
        assert 0 < relative(ours, theirs) < 2**-6


def test_operator_keeps_its_contract() -> None:
    args = (*operands((3, 4), 2)[:5], None, "row,column_reverse", "mean", "auto")
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    assert set(torch.library.opcheck(ssd, args, test_utils=checks).values()) == {"SUCCESS"}


def test_no_images() -> None:
    empty = [t[:0] if t.dim() > 2 else t for t in operands((5,), 1)]
    y = ssd_nd(*empty, routes=("forward",))
    assert y.shape == (0, 5, H, P)
    assert not torch.autograd.grad(y.sum(), empty[2])[0].any()


def test_count() -> None:
    """Three chunks of 50: scores, weighted sums, states filled and read."""

    class Call(torch.nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return ssd_nd(*args, routes=("forward", "backward"))

    steps = 2 * 2 * 150
    expected = steps * (50 * G * N + 50 * H * P + 2 * H * P * N)
    assert flops.count(Call(), *operands((150,), 2)).by_operator == {"ssmvision.ssd": expected}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"routes": ("row",)}, "no route 'row' on a 1D grid"),
        ({"merge": "none"}, "merge must be"),
        ({"x": torch.zeros(2, 3)}, r"x must be \(B, \*grid, H, P\)"),
        ({"B": torch.zeros(2, 1, 5, 3, N)}, "G a divisor of 4 heads"),
        ({"delta": torch.zeros(2, 2, 5, H)}, r"delta must have shape \(2, 1, 5, 4\)"),
        ({"D": torch.zeros(1, H, device="meta")}, "D is on meta but x is on cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    names = ("x", "delta", "A", "B", "C", "D")
    arguments = dict(zip(names, operands((5,), 1), strict=True)) | {"routes": ("forward",)}
    with pytest.raises(ValueError, match=message):
        ssd_nd(**(arguments | change))


def test_integers_are_refused() -> None:
    x, *rest = operands((5,), 1)
    with pytest.raises(TypeError, match="x must be a real floating-point"):
        ssd_nd(x.detach().long(), *rest, routes=("forward",))
