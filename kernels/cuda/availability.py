"""Whether CUDA kernels can be compiled for and run on a device, and for which architecture."""

from __future__ import annotations

from functools import cache, lru_cache

import torch

from ssmvision.kernels.cuda.compiler import supported_archs
from ssmvision.kernels.cuda.toolkit import MissingToolkitError, toolkit_digest

__all__ = ["available", "best_arch", "compilable_archs", "device_arch"]

# bf16 arithmetic and cp.async begin here.
MIN_CAPABILITY = (8, 0)


def available(device: torch.device | str | int | None = None) -> str | None:
    """Why kernels cannot be compiled for and run on a device.

    Args:
        device: as torch names it; "cuda" without an index and None are the current one.

    Returns:
        The reason in one line, or None where they can. Cached by device; raises nothing.
    """
    try:
        wanted = torch.device("cuda" if device is None else device)
    except (RuntimeError, TypeError) as error:
        return f"{device!r} is no device: {str(error).splitlines()[0]}"
    if wanted.type != "cuda":
        return f"{wanted.type} is not a CUDA device"
    reason = _build_reason()
    if reason is not None:
        return reason
    try:
        return _device_reason(torch.cuda.current_device() if wanted.index is None else wanted.index)
    except RuntimeError as error:
        return f"CUDA does not start: {str(error).splitlines()[0]}"


@lru_cache(maxsize=1)
def _build_reason() -> str | None:
    if torch.version.hip is not None:
        return "torch is built for ROCm; these kernels are CUDA's"
    if torch.version.cuda is None:
        return "torch is built without CUDA"
    if torch.cuda.device_count() == 0:
        return "no CUDA device is visible"
    try:
        toolkit_digest()
    except (MissingToolkitError, OSError) as error:
        return str(error)
    return None


@cache
def _device_reason(index: int) -> str | None:
    if index >= torch.cuda.device_count():
        return f"there is no cuda:{index}"
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return f"cuda:{index} is sm_{capability[0]}{capability[1]}; the kernels need sm_80 or newer"
    try:
        best_arch(capability, compilable_archs())
    except ValueError as error:
        return str(error)
    return None


def compilable_archs() -> tuple[str, ...]:
    """Architectures that the kernels are written for and that the installed NVRTC knows, oldest first.

    Raises:
        MissingToolkitError: NVRTC is not installed.
    """
    return tuple(arch for arch in supported_archs() if _capability(arch) >= MIN_CAPABILITY)


def _capability(arch: str) -> tuple[int, int]:
    major, minor = divmod(int(arch.removeprefix("sm_")), 10)
    return major, minor


def best_arch(capability: tuple[int, int], archs: tuple[str, ...]) -> str:
    """The newest architecture whose cubins run on a device: of its major version, and no later a minor one.

    Args:
        capability: the device's, such as (9, 0).
        archs: what the compiler knows, such as ("sm_80", "sm_90").

    Raises:
        ValueError: there is none; the compiler is older than the device.
    """
    fitting = [arch for arch in archs if (capability[0], 0) <= _capability(arch) <= capability]
    if not fitting:
        raise ValueError(
            f"the installed NVRTC cannot compile for sm_{capability[0]}{capability[1]} (it knows {', '.join(archs)}); "
            "install a torch built for a newer CUDA"
        )
    return max(fitting, key=_capability)


@cache
def device_arch(index: int) -> str:
    """The architecture to compile for, for a CUDA device.

    Raises:
        ValueError: see `best_arch`.
    """
    return best_arch(torch.cuda.get_device_capability(index), compilable_archs())
