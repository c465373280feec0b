"""The scan over random sizes, routes, dtypes, memory layouts and extreme values, against its definition in float64.

On a CPU the chunked and the Numba backend are judged by the defining loop; on a GPU the compiled ones are judged by the
chunked one, and by the loop where that is short. Half-precision results may be off by little more than rounding the
exact ones to that dtype.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmvision.kernels.selective_scan import selective_scan_nd
from tests.kernels.scan_cases import ScanCase, draw, tensors

# A float32 result's distance by norm to the exact one.
FLOAT_BOUND = 1e-5
# What a half-precision call returns in float32 (last states, gradients of parameters): its step sizes, whose inputs are
# rounded to 2e-3 or 2e-4, need not have float32's last digits.
FLOAT_IN_HALF_CALLS = 1e-4
# A half-precision result's distance, in distances of the exact result once that is rounded to the same dtype: errors of
# the computation stay below what rounding costs anyway. Among few elements, one beyond a rounding border weighs more.
ROUNDINGS, ROUNDINGS_OF_FEW, FEW = 1.2, 2.0, 64
# What rounding costs in units of the dtype's epsilon, for a result large enough not to lie near rounded numbers by
# chance.
ROUNDING = 0.21
# The gate's gradient is rounded up to three times: the result before the gate is kept in the activations' dtype, and a
# gate that routes share gets the sum of their rounded gradients.
ROUNDINGS_OF_GATE = 3.0
SLACK = {torch.bfloat16: 1e-4, torch.float16: 2e-5}
GPU_BLOCK = 10
# Fewer of Triton's, which compiles each of its variants for a second or more.
GPU_BLOCKS = [("cuda", block) for block in range(15)] + [("triton", block) for block in range(3)]


def run(case: ScanCase, inputs: dict[str, Any], dout: Tensor, dlast: Tensor, backend: str) -> dict[str, Tensor]:
    """Out, last states, and the gradients of all inputs."""
    out, last = selective_scan_nd(
        **inputs,
        delta_softplus=case.softplus,
        return_last_state=True,
        routes=case.routes,
        merge=case.merge,  # type: ignore[arg-type]
        backend=backend,
    )
    leaves = {name: t for name, t in inputs.items() if t is not None}
    outputs, weights = ((out, last), (dout, dlast)) if case.use_last else ((out,), (dout,))
    grads = torch.autograd.grad(outputs, list(leaves.values()), weights)
    return {"out": out.detach(), "last": last.detach(), **dict(zip(leaves, grads, strict=True))}


def exact(case: ScanCase, inputs: dict[str, Any], dout: Tensor, dlast: Tensor, backend: str) -> dict[str, Tensor]:
    """`run` on the same values in float64."""
    wide = {
        name: None if t is None else t.detach().double().contiguous().requires_grad_() for name, t in inputs.items()
    }
    return run(case, wide, dout.double(), dlast.double(), backend)


def distance(value: Tensor, true: Tensor) -> float:
    """Norm of the difference, without what is rounded to infinity on both sides."""
    rounded = true.to(value.dtype).double()
    both = rounded.isinf() & (value.double() == rounded)
    return float((value.double() - true).masked_fill(both, 0).norm())


def allowed(name: str, value: Tensor, true: Tensor, case: ScanCase) -> float:
    size = float(true.norm())
    if value.dtype is torch.float32:
        return size * (FLOAT_BOUND if case.dtype is torch.float32 else FLOAT_IN_HALF_CALLS) + 1e-30
    roundings = ROUNDINGS_OF_GATE if name == "z" else ROUNDINGS
    if value.numel() <= FEW:
        roundings = max(roundings, ROUNDINGS_OF_FEW)
    rounding = max(distance(true.to(value.dtype), true), ROUNDING * torch.finfo(value.dtype).eps * size)
    return roundings * rounding + SLACK[value.dtype] * size


def errors(case: ScanCase, got: dict[str, Tensor], true: dict[str, Tensor]) -> list[str]:
    """What is wrong with each result, in words; empty where all is well."""
    wrong = []
    for name, value in got.items():
        if value.numel() == 0:
            continue
        away, most = distance(value, true[name]), allowed(name, value, true[name], case)
        if not away <= most:
            size = max(float(true[name].norm()), 1e-300)
            wrong.append(f"{name} {tuple(value.shape)} {value.dtype}: {away / size:.2e} > {most / size:.2e}")
    return wrong


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))


@pytest.mark.parametrize("seed", range(40))
def test_on_a_cpu(seed: int) -> None:
    case = draw(seed, most_positions=80, most_channels=17, most_states=17)
    inputs, dout, dlast = tensors(case, "cpu")
    true = exact(case, inputs, dout, dlast, "reference")
    for backend in ("chunked", "numba"):
        got = run(case, inputs, dout, dlast, backend)
        assert not errors(case, got, true), (backend, case)


@pytest.fixture
def poisoned_memory() -> Any:
    """A function that makes `torch.empty` return NaN, so that a result which is read before it is written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    yield lambda: torch.use_deterministic_algorithms(True, warn_only=True)
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.mark.gpu
@pytest.mark.parametrize(("backend", "block"), GPU_BLOCKS)
def test_on_a_gpu(backend: str, block: int, poisoned_memory: Any) -> None:
    wrong: list[str] = []
    for seed in range(block * GPU_BLOCK, (block + 1) * GPU_BLOCK):
        case = draw(1000 + seed)
        inputs, dout, dlast = tensors(case, "cuda")
        got = run(case, inputs, dout, dlast, backend)
        loop = case.positions * len(case.routes) <= 200
        true = exact(case, inputs, dout, dlast, "reference" if loop else "chunked")
        wrong += [f"{case}: {line}" for line in errors(case, got, true)]
        poisoned_memory()
        again = run(case, inputs, dout, dlast, backend)
        wrong += [f"{case}: {name} differs between runs" for name in got if not bitwise_equal(got[name], again[name])]
        torch.use_deterministic_algorithms(False)
    assert not wrong, "\n".join(wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(0, (7,)), (2, (0,)), (2, (3, 0)), (1, (1, 5, 0))], ids=str)
def test_empty_on_cuda(shape: tuple[int, tuple[int, ...]], dtype: torch.dtype) -> None:
    """No batch or no positions: empty outputs, zero last states, and zero gradients of the parameters."""
    batch, grid = shape
    case = replace(draw(0), batch=batch, grid=grid, routes=("forward", "backward"), dtype=dtype, half_parameters=False)
    inputs, dout, dlast = tensors(case, "cuda")
    got = run(case, inputs, dout, dlast, "cuda")
    assert got["out"].shape == dout.shape
    assert not any(t.any() for name, t in got.items() if name in ("last", "A", "D", "delta_bias"))
    torch.cuda.synchronize()
