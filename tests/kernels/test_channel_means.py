"""The channel means without a GPU: against PyTorch's layers, gradients in float64, and sources that compile."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvision.kernels.channel_means import channel_means
from ssmvision.kernels.channel_means.config import MAX_PARTS, WARPS, parts, rows_at_once
from ssmvision.kernels.channel_means.op import means
from ssmvision.kernels.cuda import programs

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
SHAPES = [(2, 3, 4, 5), (1, 1, 3), (3, 7, 1), (2, 2, 3, 2, 6)]


def make(shape: tuple[int, ...], dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_means_of_the_map_and_of_its_norm(shape: tuple[int, ...]) -> None:
    x = make(shape)
    grid = tuple(range(1, len(shape) - 1))
    alone = torch.stack((x.mean(grid), F.layer_norm(x, shape[-1:], eps=1e-3).mean(grid)), 1)
    torch.testing.assert_close(channel_means(x, 1e-3), alone)
    assert torch.autograd.gradcheck(lambda t: channel_means(t, 1e-3), (x,))


def test_dtypes() -> None:
    x = make((2, 5, 6), BF16)
    with torch.autocast("cpu", BF16):
        out = channel_means(x)
    assert out.dtype == F32
    torch.testing.assert_close(out, channel_means(x.detach().double()).float(), rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(out.square().sum(), x)[0].dtype == BF16


def test_opcheck() -> None:
    assert set(torch.library.opcheck(means, (make((2, 5, 6), F32), 1e-5, "auto")).values()) == {"SUCCESS"}


def test_compiles_into_one_graph() -> None:
    x = make((2, 5, 6), F32)
    compiled = torch.compile(channel_means, backend="aot_eager", fullgraph=True)
    for run in (compiled, channel_means):
        grad = torch.autograd.grad(run(x).sin().sum(), x)[0]
        torch.testing.assert_close(grad, torch.autograd.grad(channel_means(x).sin().sum(), x)[0])


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"x must be \(B, \*grid, C\), got \(3, 4\)"):
        channel_means(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"position to take means over, got \(3, 0, 4\)"):
        channel_means(torch.zeros(3, 0, 4))
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        channel_means(torch.zeros(3, 2, 4, dtype=torch.int64))


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 1 << 20])
@pytest.mark.parametrize("batch", [1, 2, 5000])
def test_every_part_has_a_row(batch: int, rows: int) -> None:
    for packs in (1, 6):
        at_once = rows_at_once(packs)
        count = parts(batch, rows, at_once, 132)
        assert 1 <= count <= MAX_PARTS
        assert (count - 1) * WARPS * at_once < rows


def test_sources_compile() -> None:
    program = next(p for p in programs() if p.spec.name == "channel_means")
    for defines in ({}, {"V": 1, "PACKS": 16, "ROWS": 1}, {"V": 2, "PACKS": 3}):
        assert program.variant({**program.spec.variants[0], **defines})._compile("sm_90")[:4] == b"\x7fELF"
