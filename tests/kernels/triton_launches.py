"""Compiles what a Triton backend would launch, without a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

TARGETS = (GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64))
# What any GPU grants a block.
SHARED_BYTES = 48 * 1024


def compile_all(backend: ModuleType, call: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that `call` launches through `backend._kernel`, each compiled for all targets."""
    real, recorded = backend._kernel, []

    def record(name: str) -> Any:
        class Launcher:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                assert all(size > 0 for size in grid)
                return lambda *args, **options: recorded.append((name, args, options))

        return Launcher()

    monkeypatch.setattr(backend, "_kernel", record)
    call()
    for name, args, options in recorded:
        for target in TARGETS:
            _compile(real(name), args, dict(options), target)
    return [name for name, *_ in recorded]


def _compile(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], target: GPUTarget) -> None:
    warps = {"num_warps": options.pop("num_warps")}
    given = dict(zip(kernel.arg_names, args, strict=False)) | options
    constants = {p.name: given[p.name] for p in kernel.params if p.is_constexpr or given[p.name] is None}
    signature = {name: "constexpr" if name in constants else mangle_type(given[name]) for name in kernel.arg_names}
    binary = triton.compile(ASTSource(kernel, signature, constants), target=target, options=warps)
    assert binary.asm["cubin" if target.backend == "cuda" else "hsaco"].startswith(b"\x7fELF")
    assert binary.metadata.shared <= SHARED_BYTES
