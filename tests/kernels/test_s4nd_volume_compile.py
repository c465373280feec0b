"""Every Triton kernel of the 3D convolution compiles for NVIDIA GPUs as the backend launches it; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

from ssmvision.kernels.s4nd import volume
from ssmvision.kernels.s4nd.args import ConvArgs

# Shared memory of a block: what the generation grants at most.
GRANTED = {80: 163 << 10, 90: 227 << 10, 120: 99 << 10}
REAL_KERNEL = volume._kernel


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

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert min(grid) > 0
            return lambda *args, **options: recorded.append(Launch(self._name, args, options))

    monkeypatch.setattr(volume, "_kernel", Recorder)
    monkeypatch.setattr(volume, "_processors", lambda device: 132)
    return recorded


def both_ways(grid: tuple[int, ...], need_kernels: bool, skip: bool, dtype: torch.dtype) -> None:
    """Forward and backward of 4 features; the results are what was in the memory."""
    kernels = tuple(torch.zeros(1, 1, 4, 2 * length) for length in grid)
    u, D = torch.zeros(1, 4, *grid, dtype=dtype), torch.zeros(1, 4) if skip else None
    args = ConvArgs(u, kernels, grid, D, False, "bf16")
    volume.backward(args, volume.forward(args), True, need_kernels)


def compiled(launch: Launch, target: GPUTarget) -> Any:
    options = dict(launch.options)
    warps = {"num_warps": options.pop("num_warps")} if "num_warps" in options else {}
    kernel = REAL_KERNEL(launch.name)
    given = dict(zip(kernel.arg_names, launch.args, strict=False)) | options
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr or given[p.name] is None}
    signature = {name: "constexpr" if name in constants else mangle_type(given[name]) for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if _whole(given[name])}
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=warps)


def _whole(value: object) -> bool:
    """Whether triton would find and use that a pointer or a size is a multiple of 16."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and not isinstance(value, bool) and value > 1 and value % 16 == 0


CASES = [
    (80, (64, 64, 64), True, True, torch.bfloat16),
    (90, (128, 128, 128), True, True, torch.bfloat16),
    (90, (128, 16, 40), True, False, torch.float32),
    (120, (64, 33, 18), False, True, torch.float16),
]


@pytest.mark.parametrize(("capability", "grid", "need_kernels", "skip", "dtype"), CASES)
def test_kernels_compile_within_the_memory_granted(
    capability: int,
    grid: tuple[int, ...],
    need_kernels: bool,
    skip: bool,
    dtype: torch.dtype,
    launches: list[Launch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(volume, "_shared_bytes", lambda device: GRANTED[capability])
    both_ways(grid, need_kernels, skip, dtype)
    names = [launch.name for launch in launches]
    assert {"planes", "columns", "columns_backward"} <= set(names)
    assert ("planes_backward" in names) == ("diagonals" in names) == need_kernels
    for launch in launches:
        binary = compiled(launch, GPUTarget("cuda", capability, 32))
        assert binary.asm["cubin"].startswith(b"\x7fELF")
        assert binary.metadata.shared <= GRANTED[capability], launch.name
        assert capability != 90 or "wgmma" in binary.asm["ptx"] or launch.name == "diagonals" or min(grid) < 64
