"""The channel scale without a GPU: against its formula, gradients in float64, dtypes, refusals, and sources."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.channel_scale import scale_channels
from ssmvision.kernels.channel_scale.op import scale
from ssmvision.kernels.cuda import programs

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def make(maps: int, shape: tuple[int, ...] = (2, 3, 4, 5), dtype: torch.dtype = F64) -> tuple[list[Tensor], Tensor]:
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=g, dtype=F64).to(dtype).requires_grad_() for _ in range(maps)]
    weights = torch.randn(shape[0], maps, shape[-1], generator=g, dtype=F64).to(dtype)
    return tensors, weights.requires_grad_()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 7, 1), (2, 1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("maps", [1, 2])
def test_is_its_formula(maps: int, shape: tuple[int, ...]) -> None:
    tensors, weights = make(maps, shape)
    broadcast = [w.view(shape[0], *[1] * (len(shape) - 2), shape[-1]) for w in weights.unbind(1)]
    expected = sum((t * w for t, w in zip(tensors, broadcast, strict=True)), torch.zeros(()))
    torch.testing.assert_close(scale_channels(*tensors, weights=weights), expected)
    assert torch.autograd.gradcheck(lambda *t: scale_channels(*t[:-1], weights=t[-1]), (*tensors, weights))


def test_dtypes() -> None:
    tensors, weights = make(2, dtype=BF16)
    wide = weights.detach().float().requires_grad_()
    out = scale_channels(*tensors, weights=wide)
    assert out.dtype == BF16
    grads = torch.autograd.grad(out.float().square().sum(), [*tensors, wide])
    assert [g.dtype for g in grads] == [BF16, BF16, F32]


@pytest.mark.parametrize("maps", [1, 2])
def test_opcheck(maps: int) -> None:
    tensors, weights = make(maps, (2, 7, 5), F32)
    arguments = (tensors[0], tensors[1] if maps == 2 else None, weights, "auto")
    assert set(torch.library.opcheck(scale, arguments).values()) == {"SUCCESS"}


def test_compiles_into_one_graph() -> None:
    tensors, weights = make(2, dtype=F32)
    leaves = [*tensors, weights]

    def run(*t: Tensor) -> Tensor:
        return scale_channels(*t[:2], weights=t[2])

    values = []
    for call in (torch.compile(run, backend="aot_eager", fullgraph=True), run):
        values.append(torch.autograd.grad(call(*leaves).sin().sum(), leaves))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs)


X = torch.zeros(2, 3, 4)
W = torch.zeros(2, 2, 4)


@pytest.mark.parametrize(
    ("maps", "weights", "error", "message"),
    [
        ([], W, ValueError, "one or two maps, got 0"),
        ([X, X, X], W, ValueError, "one or two maps, got 3"),
        ([X[0], X[0]], W, ValueError, r"must be \(B, \*grid, C\), got \(3, 4\)"),
        ([X, X[:, :2]], W, ValueError, r"one shape, got \(2, 3, 4\) and \(2, 2, 4\)"),
        ([X, X.double()], W, TypeError, r"one dtype, got torch\.float32 and torch\.float64"),
        ([X], W, ValueError, r"weights must have shape \(2, 1, 4\), got \(2, 2, 4\)"),
        ([X.long()], W, TypeError, r"maps\[0\] must be a real floating-point"),
        ([X, X], W.to("meta"), ValueError, "weights is on meta"),
    ],
)
def test_refusals(maps: list[Tensor], weights: Tensor, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        scale_channels(*maps, weights=weights)


def test_sources_compile() -> None:
    program = next(p for p in programs() if p.spec.name == "channel_scale")
    for io, wio, wide in ((0, 0, 4), (1, 0, 8), (2, 2, 8), (0, 1, 1), (1, 0, 2)):
        variant = program.variant({"IO": io, "WIO": wio, "V": wide, "MAPS": 2})
        assert variant._compile("sm_90")[:4] == b"\x7fELF"
