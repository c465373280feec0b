"""The CUDA backend on tensors of more than 2^31 elements: piece by piece what smaller calls give.

Needs a GPU with about 60 GB of free memory.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.selective_scan import selective_scan_nd

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

LIMIT = 2**31
# Rounding bfloat16 results that differ in float32's last bits, and float32 sums in another order.
BOUND = {torch.bfloat16: 1e-3, torch.float32: 2e-5}


def normal(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").normal_()


def steps(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda").uniform_(0.01, 0.3)


def run(inputs: dict[str, Any], dout: Tensor, routes: tuple[str, ...]) -> dict[str, Tensor]:
    leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
    out, last = selective_scan_nd(**leaves, return_last_state=True, routes=routes, backend="cuda")
    grads = torch.autograd.grad(out, list(leaves.values()), dout)
    return {"out": out.detach(), "last": last.detach(), **dict(zip(leaves, grads, strict=True))}


def assert_near(name: str, value: Tensor, expected: Tensor) -> None:
    """By norm, in slabs: a float64 copy of the whole would not fit."""
    away = size = torch.zeros((), dtype=torch.float64, device=value.device)
    for a, b in zip(value.flatten().split(1 << 28), expected.to(value.dtype).flatten().split(1 << 28), strict=True):
        away = away + (a.float() - b.float()).square().sum(dtype=torch.float64)
        size = size + b.float().square().sum(dtype=torch.float64)
    assert float(size) > 0, name
    assert float(away / size) ** 0.5 <= BOUND[value.dtype], (name, float(away / size) ** 0.5)


@pytest.fixture(autouse=True)
def free_memory() -> Any:
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    yield
    torch.cuda.empty_cache()


def test_a_long_sequence_of_many_channels() -> None:
    """One route; every map has more than 2^31 elements. The pieces are groups of channels."""
    length, channels, piece = 2**20 + 3, 2112, 264
    inputs = {
        "x": normal(1, length, channels),
        "delta": steps(1, 1, length, channels),
        "A": -torch.rand(1, channels, 1, device="cuda") - 0.1,
        "B": normal(1, 1, length, 1),
        "C": normal(1, 1, length, 1),
        "D": torch.randn(1, channels, device="cuda"),
    }
    dout = normal(1, length, channels)
    assert dout.numel() > LIMIT
    whole = run(inputs, dout, ("forward",))
    shared = {name: torch.zeros(inputs[name].shape, device="cuda") for name in ("B", "C")}
    for start in range(0, channels, piece):
        at = slice(start, start + piece)
        part = {
            name: t if name in shared else t[:, at] if name in ("A", "D") else t[..., at] for name, t in inputs.items()
        }
        # In float32, because the pieces' gradients of B and C are added up.
        got = run({name: t.float() for name, t in part.items()}, dout[..., at].float(), ("forward",))
        for name in ("out", "x", "delta"):
            assert_near(name, whole[name][..., at], got[name])
        for name in ("last", "A", "D"):
            assert_near(name, whole[name].narrow(2 if name == "last" else 1, start, piece), got[name])
        for name, total in shared.items():
            total += got[name]
    for name, total in shared.items():
        assert_near(name, whole[name], total)


def test_many_states_and_routes() -> None:
    """Four routes over a map of 2^20 positions: delta, B and C have more than 2^31 elements, x and out have fewer.

    The pieces are the batch entries.
    """
    routes, grid = ("row", "column", "row_reverse", "column_reverse"), (1031, 1024)
    for batch, channels, states in ((2, 260, 1), (2, 2, 256)):
        inputs = {
            "x": normal(batch, *grid, channels),
            "delta": steps(batch, 4, *grid, channels),
            "A": -torch.rand(4, channels, states, device="cuda") - 0.1,
            "B": normal(batch, 4, *grid, states),
            "C": normal(batch, 4, *grid, states),
        }
        dout = normal(batch, *grid, channels)
        assert max(inputs["delta"].numel(), inputs["B"].numel()) > LIMIT
        whole = run(inputs, dout, routes)
        dA = torch.zeros_like(inputs["A"])
        for entry in range(batch):
            at = slice(entry, entry + 1)
            got = run({name: t if name == "A" else t[at] for name, t in inputs.items()}, dout[at], routes)
            dA += got["A"]
            for name in ("out", "last", "x", "delta", "B", "C"):
                assert_near(name, whole[name][at], got[name])
        assert_near("A", whole["A"], dA)
        del inputs, dout, whole, got
        torch.cuda.empty_cache()
