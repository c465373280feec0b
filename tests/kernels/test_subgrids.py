"""The sub-grids without a GPU: against PyTorch's layers, gradients in float64, dtypes, and sources that compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ssmvision.kernels.cuda import programs
from ssmvision.kernels.cuda.availability import compilable_archs
from ssmvision.kernels.subgrids import flops, join_subgrids, split_subgrids, subgrid_conv, subgrid_norm
from ssmvision.kernels.subgrids.op import conv, norm

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
SIZES = [(4, 6), (5, 3), (1, 1), (2, 7)]


def conv_inputs(size: tuple[int, int], channels: int = 3, dtype: torch.dtype = F64) -> list[Tensor]:
    """The map is a slice, as a projection's first half is."""
    g = torch.Generator().manual_seed(0)
    shapes = ((2, *size, 2 * channels), (channels, 1, 3, 3), (channels,))
    x, weight, bias = (torch.randn(*s, generator=g, dtype=F64).to(dtype) for s in shapes)
    return [t.requires_grad_() for t in (x[..., :channels], weight, bias)]


def norm_inputs(size: tuple[int, int], channels: int = 3, dtype: torch.dtype = F64) -> list[Tensor]:
    g = torch.Generator().manual_seed(0)
    grid = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    shapes = ((4, 2, *grid, channels), (2, *size, 2 * channels), (channels,), (channels,))
    y, gate, weight, bias = (torch.randn(*s, generator=g, dtype=F64).to(dtype) for s in shapes)
    return [t.requires_grad_() for t in (y.transpose(0, 1), gate[..., channels:], weight, bias)]


@pytest.mark.parametrize("size", SIZES)
def test_conv_is_the_layers_one_by_one(size: tuple[int, int]) -> None:
    x, weight, bias = conv_inputs(size)
    alone = F.silu(F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=3)).permute(0, 2, 3, 1)
    parts = subgrid_conv(x, weight, bias)
    torch.testing.assert_close(parts, split_subgrids(alone))
    assert parts.transpose(0, 1).is_contiguous()
    for k, (i, j) in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        part = alone[:, i::2, j::2]
        torch.testing.assert_close(parts[:, k, : part.shape[1], : part.shape[2]], part)
        assert not parts[:, k, part.shape[1] :].any()
        assert not parts[:, k, :, part.shape[2] :].any()


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_norm_is_the_layers_one_by_one(size: tuple[int, int], silu: bool) -> None:
    y, gate, weight, bias = norm_inputs(size)
    alone = F.layer_norm(join_subgrids(y, size), (3,), weight, bias, 1e-3) * (F.silu(gate) if silu else gate)
    torch.testing.assert_close(subgrid_norm(y, gate, weight, bias, 1e-3, silu), alone)


@pytest.mark.parametrize("size", SIZES)
def test_gradcheck(size: tuple[int, int]) -> None:
    assert torch.autograd.gradcheck(subgrid_conv, conv_inputs(size))
    for silu in (True, False):
        assert torch.autograd.gradcheck(lambda *t, silu=silu: subgrid_norm(*t, silu=silu), norm_inputs(size))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("weights", [F32, BF16])
def test_dtypes_are_the_tensors_own(dtype: torch.dtype, weights: torch.dtype) -> None:
    x, weight, bias = conv_inputs((5, 4), dtype=dtype)
    weight, bias = (t.detach().to(weights).requires_grad_() for t in (weight, bias))
    y, gate, scale, shift = norm_inputs((5, 4), dtype=dtype)
    scale, shift = (t.detach().to(weights).requires_grad_() for t in (scale, shift))
    with torch.autocast("cpu", BF16):
        parts, out = subgrid_conv(x, weight, bias), subgrid_norm(y, gate, scale, shift)
    assert parts.dtype == out.dtype == dtype
    leaves = [x, weight, bias, y, gate, scale, shift]
    grads = torch.autograd.grad(parts.float().square().sum() + out.float().square().sum(), leaves)
    assert [g.dtype for g in grads] == [t.dtype for t in leaves]


def test_opcheck() -> None:
    assert set(torch.library.opcheck(conv, (*conv_inputs((5, 4), dtype=F32), "auto")).values()) == {"SUCCESS"}
    arguments = (*norm_inputs((5, 4), dtype=F32), 1e-5, True, "auto")
    assert set(torch.library.opcheck(norm, arguments).values()) == {"SUCCESS"}


def test_compiles_into_one_graph() -> None:
    def both(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return subgrid_norm(subgrid_conv(x, weight, bias), x, bias, bias)

    leaves = conv_inputs((5, 4), dtype=F32)
    values = []
    for run in (torch.compile(both, backend="aot_eager", fullgraph=True), both):
        out = run(*leaves)
        values.append((out, *torch.autograd.grad(out.sin().sum(), leaves)))
    for ours, theirs in zip(*values, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_flops_are_the_convolutions() -> None:
    x, weight, bias = conv_inputs((5, 4), dtype=F32)

    def count(run: Callable[[], Tensor], backward: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            out = run().sum()
            if backward:
                out.backward()
        return int(counter.get_total_flops())

    alone = count(lambda: F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1, groups=3), False)
    assert count(lambda: subgrid_conv(x, weight, bias), False) == alone == flops.forward_flops(x.shape, weight.shape)
    assert count(lambda: subgrid_conv(x, weight, bias), True) == 3 * alone


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": torch.zeros(4, 4, 3)}, ValueError, r"x must be \(B, H, W, E\)"),
        ({"weight": torch.zeros(3, 3, 3)}, ValueError, r"weight must have shape \(3, 1, 3, 3\), got \(3, 3, 3\)"),
        ({"bias": torch.zeros(4)}, ValueError, r"bias must have shape \(3,\)"),
        ({"bias": torch.zeros(3, dtype=torch.int64)}, TypeError, "bias must be a real floating-point"),
        ({"weight": torch.zeros(3, 1, 3, 3, device="meta")}, ValueError, "weight is on meta but x is on cpu"),
    ],
)
def test_refusals_of_the_convolution(change: dict[str, Tensor], error: Any, message: str) -> None:
    arguments = dict(zip(("x", "weight", "bias"), conv_inputs((4, 4)), strict=True))
    with pytest.raises(error, match=message):
        subgrid_conv(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": torch.zeros(2, 4, 3)}, r"gate must be \(B, H, W, E\)"),
        ({"gate": torch.zeros(2, 7, 4, 3)}, r"y must have shape \(2, 4, 4, 2, 3\), got \(2, 4, 2, 2, 3\)"),
        ({"weight": torch.zeros(2)}, r"weight must have shape \(3,\)"),
    ],
)
def test_refusals_of_the_norm(change: dict[str, Tensor], message: str) -> None:
    arguments = dict(zip(("y", "gate", "weight", "bias"), norm_inputs((4, 4)), strict=True))
    with pytest.raises(ValueError, match=message):
        subgrid_norm(**{**arguments, **change})


@pytest.mark.parametrize("program", ["subgrid_conv", "subgrid_norm"])
def test_unusual_variants_compile(program: str) -> None:
    spec = next(p for p in programs() if p.spec.name == program)
    for vector, arch in ((1, compilable_archs()[0]), (2, "sm_90")):
        variant = spec.variant({**spec.spec.variants[1], "V": vector})
        assert variant._compile(arch)[:4] == b"\x7fELF"
