"""Finds the parts of CUDA that torch's wheels bring: NVRTC, its Python bindings, and the half-precision headers."""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["MissingToolkitError", "include_folder", "nvrtc", "toolkit_digest"]

# The names of the wheels before and after CUDA 13, which dropped the suffix.
NVRTC_WHEELS = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu{major}")
RUNTIME_WHEELS = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu{major}")
HALF_HEADERS = ("cuda_bf16.h", "cuda_bf16.hpp", "cuda_fp16.h", "cuda_fp16.hpp")


class MissingToolkitError(RuntimeError):
    """A part of CUDA is not installed; the message names the pip package that brings it."""


def _wheel(names: tuple[str, str], major: int) -> str:
    return names[0] if major >= 13 else names[1].format(major=major)


def _wheel_version(names: tuple[str, str], major: int) -> str:
    for name in names if major >= 13 else names[::-1]:
        try:
            return version(name.format(major=major))
        except PackageNotFoundError:
            continue
    return "from elsewhere"


def _files(names: tuple[str, str], major: int, pattern: str) -> Iterator[Path]:
    """Files of the installed wheels whose name matches."""
    for name in names if major >= 13 else names[::-1]:
        try:
            wheel = distribution(name.format(major=major))
        except PackageNotFoundError:
            continue
        for file in wheel.files or ():
            path = Path(str(wheel.locate_file(file)))
            if fnmatch(file.name, pattern) and path.is_file():
                yield path


def _bindings_major() -> int:
    try:
        return int(version("cuda-bindings").partition(".")[0])
    except PackageNotFoundError:
        raise MissingToolkitError(
            "the Python package cuda.bindings is not installed: pip install cuda-bindings "
            "(of the same major version as torch.version.cuda)"
        ) from None


@lru_cache(maxsize=1)
def nvrtc() -> Any:
    """The module `cuda.bindings.nvrtc`, with torch's own NVRTC library loaded.

    Raises:
        MissingToolkitError: the bindings or the library are not there.
    """
    major = _bindings_major()
    try:
        bindings = import_module("cuda.bindings.nvrtc")
        # Loaded first because the bindings only search the interpreter's own site-packages, and NVRTC finds its
        # built-in functions only where they are loaded already or on the system's search path.
        for library in _libraries(major):
            ctypes.CDLL(str(library))
        bindings.nvrtcVersion()
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingToolkitError(
            f"CUDA's run-time compiler NVRTC cannot be loaded ({' '.join(str(error).split())[:300]}): "
            f"pip install {_wheel(NVRTC_WHEELS, major)}"
        ) from error
    return bindings


def _libraries(major: int) -> list[Path]:
    """The built-in functions' library, then the compiler's; empty where a system-wide toolkit has them."""
    patterns = [f"libnvrtc-builtins.so.{major}.*", f"libnvrtc.so.{major}"]
    if sys.platform == "win32":
        patterns = [f"nvrtc-builtins64_{major}?.dll", f"nvrtc64_{major}?_0.dll"]
    found = (next(_candidates(major, pattern), None) for pattern in patterns)
    return [library for library in found if library is not None]


def _candidates(major: int, pattern: str) -> Iterator[Path]:
    yield from _files(NVRTC_WHEELS, major, pattern)
    for folder in _package_folders("torch"):  # torch's wheels for Windows carry the libraries themselves
        yield from (folder / "lib").glob(pattern)


def _package_folders(name: str) -> list[Path]:
    """Where a package's files are, without importing it."""
    spec = find_spec(name)
    return [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []


@lru_cache(maxsize=1)
def include_folder() -> Path:
    """The folder that holds `cuda_bf16.h` and `cuda_fp16.h`.

    Looked for in CUDA's runtime wheel, in triton's copy, then in an installed toolkit.

    Raises:
        MissingToolkitError: it is in none of them.
    """
    major = _bindings_major()
    header = next(_files(RUNTIME_WHEELS, major, HALF_HEADERS[0]), None)
    if header is not None:
        return header.parent
    folders = [folder / "backends" / "nvidia" / "include" for folder in _package_folders("triton")]
    # Knows conda's and system-wide toolkits; older releases of cuda-bindings come without it.
    pathfinder = import_module("cuda.pathfinder") if find_spec("cuda.pathfinder") else None
    search = getattr(pathfinder, "find_nvidia_header_directory", None)
    if search is not None and (found := search("cudart")):
        folders.append(Path(found))
    for folder in folders:
        if (folder / HALF_HEADERS[0]).is_file():
            return folder
    raise MissingToolkitError(
        f"CUDA's header {HALF_HEADERS[0]} is not installed: pip install {_wheel(RUNTIME_WHEELS, major)}"
    )


@lru_cache(maxsize=1)
def toolkit_digest() -> str:
    """What stands for the compiler and its headers in a cache key.

    Raises:
        MissingToolkitError: see `nvrtc` and `include_folder`.
    """
    _, major, minor = nvrtc().nvrtcVersion()
    # The wheel's version too: it also tells patch releases apart, which NVRTC does not.
    digest = hashlib.sha256(f"nvrtc {major}.{minor} {_wheel_version(NVRTC_WHEELS, major)}".encode())
    for name in HALF_HEADERS:
        header = include_folder() / name
        digest.update(header.read_bytes() if header.is_file() else b"")
    return digest.hexdigest()
