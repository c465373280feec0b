"""Every Triton kernel of the scan compiles for NVIDIA and AMD GPUs, as the backend launches it; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from ssmvision.kernels.selective_scan import triton as backend
from ssmvision.kernels.selective_scan.args import ScanArgs

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
# What a program may take without a limit on how many share a multiprocessor; the kernels' sums need far less.
SHARED_BYTES = 16384
# States, dtype, whether D, z and bias are there, length.
LAUNCHES = {
    "16 states, bfloat16, in parts": (16, torch.bfloat16, True, 300),
    "1 state, float32": (1, torch.float32, True, 60),
    "256 states, float16, no extras": (256, torch.float16, False, 60),
}


class Launch(NamedTuple):
    name: str
    args: tuple[Any, ...]
    options: dict[str, Any]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """What the backend would launch, in place of launching it."""
    recorded: list[Launch] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
            assert len(grid) == 1
            assert grid[0] > 0
            return lambda *args, **options: recorded.append(Launch(self._name, args, options))

    monkeypatch.setattr(backend, "_kernel", Recorder)
    return recorded


def scan_both_ways(n: int, dtype: torch.dtype, extras: bool, length: int) -> None:
    """Forward and backward of 96 channels along two routes; the results are what was in the memory."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    walked = zeros(1, length, 96), zeros(1, 2, length, 96)
    states = torch.zeros(2, 96, n), zeros(1, 2, length, n), zeros(1, 2, length, n)
    optional = (torch.zeros(2, 96), zeros(1, length, 96), torch.zeros(2, 96)) if extras else (None, None, None)
    args = ScanArgs(*walked, *states, *optional, extras, ("forward", "backward"), (length,), "sum")
    out, last, saved, ungated = backend.forward(args, True)
    backend.backward(args, saved, ungated, out, last)


def compiled(launch: Launch, target: GPUTarget) -> Any:
    options = dict(launch.options)
    warps = {"num_warps": options.pop("num_warps")} if "num_warps" in options else {}
    kernel = REAL_KERNEL(launch.name)
    given = dict(zip(kernel.arg_names, launch.args, strict=False)) | options
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr or given[p.name] is None}
    signature = {name: "constexpr" if name in constants else mangle_type(given[name]) for name in kernel.arg_names}
    return triton.compile(ASTSource(kernel, signature, constants), target=target, options=warps)


REAL_KERNEL = backend._kernel


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", LAUNCHES)
def test_kernels_compile(case: str, target: str, launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_lanes", lambda device: TARGETS[target].warp_size)
    scan_both_ways(*LAUNCHES[case])
    names = {launch.name for launch in launches}
    assert names >= {"scan_forward", "scan_backward", "merge_routes"}
    if "in parts" in case:
        assert names == {*names, "scan_part", "scan_carry", "scan_adjoint", "gate_backward"}
    for launch in launches:
        binary = compiled(launch, TARGETS[target])
        assert binary.asm["hsaco" if target.startswith("gfx") else "cubin"].startswith(b"\x7fELF")
        assert binary.metadata.shared <= SHARED_BYTES, launch.name
