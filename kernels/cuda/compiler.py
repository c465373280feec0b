"""Compiles CUDA C++ to a cubin with NVRTC: no toolkit, no host compiler, no driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ssmvision.kernels.cuda.toolkit import include_folder, nvrtc

__all__ = ["CompileError", "compile_cubin", "supported_archs"]

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
STANDARD = "--std=c++17"


class CompileError(RuntimeError):
    """The source does not compile; the message holds the compiler's log, which shows the lines at fault."""


def supported_archs() -> tuple[str, ...]:
    """Architectures that the installed NVRTC can compile for, such as "sm_90", oldest first.

    Raises:
        MissingToolkitError: NVRTC is not installed.
    """
    status, archs = nvrtc().nvrtcGetSupportedArchs()
    _check(status, "nvrtcGetSupportedArchs")
    return tuple(f"sm_{arch}" for arch in archs)


def compile_cubin(
    source: str, *, name: str, arch: str, options: Sequence[str] = (), headers: Mapping[str, str] = NO_HEADERS
) -> bytes:
    """Compile one translation unit.

    Args:
        source: CUDA C++17. Kernels are found by their name, so declare them `extern "C" __global__`.
        name: what the compiler calls the source in messages.
        arch: real architecture, such as "sm_90" or "sm_90a".
        options: further NVRTC options, such as "-DN=16" or "--use_fast_math".
        headers: texts that `#include "..."` finds, by the name written there.

    Returns:
        A cubin for devices of `arch` (and of later minor revisions, unless it ends in a letter).

    Raises:
        CompileError: the source or an option is wrong.
        MissingToolkitError: NVRTC or its headers are not installed.
    """
    compiler = nvrtc()
    flags = [f"--gpu-architecture={arch}", STANDARD, f"--include-path={include_folder()}", *options]
    texts, names = [text.encode() for text in headers.values()], [header.encode() for header in headers]
    status, program = compiler.nvrtcCreateProgram(source.encode(), name.encode(), len(headers), texts, names)
    _check(status, "nvrtcCreateProgram")
    try:
        (status,) = compiler.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        if status != compiler.nvrtcResult.NVRTC_SUCCESS:
            log = _read(compiler.nvrtcGetProgramLogSize, compiler.nvrtcGetProgramLog, program)
            text = log.decode(errors="replace").strip("\0\n ")
            raise CompileError(f"{name} does not compile ({status.name}; options {' '.join(flags)})\n{text}")
        return _read(compiler.nvrtcGetCUBINSize, compiler.nvrtcGetCUBIN, program)
    finally:
        compiler.nvrtcDestroyProgram(program)


def _check(status: Any, call: str) -> None:
    if status != nvrtc().nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(f"{call} failed: {status.name}")


def _read(size_of: Any, get: Any, program: Any) -> bytes:
    status, size = size_of(program)
    _check(status, size_of.__name__)
    # The bindings write into the object that they are given; Python shares one object among equal short bytes.
    content = bytes(max(size, 2))
    (status,) = get(program, content)
    _check(status, get.__name__)
    return content[:size]
