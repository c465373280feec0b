"""Loads cubins and launches their kernels through the CUDA driver's public Python bindings.

A launch packs its arguments into a buffer whose layout and addresses were fixed when the kernel was loaded, and hands
the driver the address of the table of pointers; nothing is allocated, nothing waits, so it may be captured in a graph.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.cuda.signature import ArgumentBuffer, Parameters, Signature

__all__ = ["Argument", "CudaError", "Kernel", "KernelAttributes", "load_kernels"]

Argument = Tensor | int | float | bool | ctypes.Structure | None
Size3 = tuple[int, int, int]
# A kernel may use this much shared memory, its static part included, before more has to be asked for.
DEFAULT_SHARED_BYTES = 48 * 1024


class CudaError(RuntimeError):
    """The CUDA driver refused a call; the message has the error's name, the kernel's, and what was asked."""


@dataclass(frozen=True)
class KernelAttributes:
    """What a kernel takes on its device.

    Attributes:
        registers: per thread.
        shared_bytes: static shared memory per block.
        local_bytes: local memory per thread; above 0 where registers spill or an array is indexed at run time.
        max_threads: largest block that can be launched.
    """

    registers: int
    shared_bytes: int
    local_bytes: int
    max_threads: int


@lru_cache(maxsize=1)
def _driver() -> Any:
    return import_module("cuda.bindings.driver")


def _check(status: Any, doing: str) -> None:
    driver = _driver()
    if status != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(status)
        raise CudaError(f"{status.name} ({(text or b'unknown').decode()}) {doing}")


def _call(name: str, *args: Any, doing: str) -> Any:
    """Call the driver; the result without its status."""
    status, *results = getattr(_driver(), name)(*args)
    _check(status, doing)
    return results[0] if results else None


@cache
def _primary_context(device: int) -> Any:
    doing = f"opening cuda:{device}"
    return _call("cuDevicePrimaryCtxRetain", _call("cuDeviceGet", device, doing=doing), doing=doing)


def _bind_context(device: int) -> None:
    """Give this thread the context that torch uses, where it has none yet: torch binds it late in new threads."""
    doing = f"binding cuda:{device} to a thread"
    if int(_call("cuCtxGetCurrent", doing=doing)) == 0:
        _call("cuCtxSetCurrent", _primary_context(device), doing=doing)


@contextmanager
def _allowed_during_capture() -> Iterator[None]:
    """Loading allocates device memory, which a graph capture in progress would otherwise forbid in this thread."""
    doing = "changing the stream capture mode"
    relaxed = _driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    before = _call("cuThreadExchangeStreamCaptureMode", relaxed, doing=doing)
    try:
        yield
    finally:
        _call("cuThreadExchangeStreamCaptureMode", before, doing=doing)


def load_kernels(cubin: bytes, signatures: Mapping[str, Parameters], device: int) -> dict[str, Kernel]:
    """Load a cubin on a device, for the life of the process.

    Args:
        cubin: compiled for the device's architecture.
        signatures: name of each kernel to take from it -> its parameters, see `signature.Parameters`.
        device: index of a CUDA device.

    Raises:
        CudaError: the cubin does not fit the device, or lacks a kernel.
        ValueError: a parameter has a type that is not supported.
    """
    parsed = {name: Signature(parameters) for name, parameters in signatures.items()}
    with torch.cuda.device(device):
        _bind_context(device)
        with _allowed_during_capture():
            module = _call("cuModuleLoadData", cubin, doing=f"loading {', '.join(signatures)} on cuda:{device}")
            return {
                name: Kernel(
                    _call("cuModuleGetFunction", module, name.encode(), doing=f"looking for kernel {name}"),
                    name,
                    device,
                    signature,
                )
                for name, signature in parsed.items()
            }


class Kernel:
    """A kernel on a device; made by `load_kernels`. May be launched by several threads at once."""

    def __init__(self, function: Any, name: str, device: int, signature: Signature) -> None:
        self.name = name
        self.device = device
        self._attributes = _read_attributes(function, name)
        self._function = function
        self._signature = signature
        self._arguments = _PerThread(signature)
        self._lock = threading.Lock()
        self._shared_bytes = DEFAULT_SHARED_BYTES - self._attributes.shared_bytes
        self._launch_kernel = _driver().cuLaunchKernel
        self._success = _driver().CUresult.CUDA_SUCCESS

    def attributes(self) -> KernelAttributes:
        """What the kernel takes on its device, read when it was loaded."""
        return self._attributes

    def launch(
        self, grid: Size3, block: Size3, shared_bytes: int, stream: int | None, args: Sequence[Argument]
    ) -> None:
        """Queue the kernel.

        Args:
            grid: blocks in x, y and z, each at least 1.
            block: threads per block in x, y and z.
            shared_bytes: dynamic shared memory per block.
            stream: handle of a CUDA stream of the kernel's device; None is torch's current one.
            args: one per parameter. A pointer is a tensor of the kernel's device, an address or None (null); that the
                tensors are there, contiguous and of the right dtype is the caller's to check.

        Raises:
            CudaError: the driver refuses the launch.
            TypeError: number or types of the arguments differ from the kernel's parameters.
        """
        if torch.cuda.current_device() == self.device:
            self._launch(grid, block, shared_bytes, stream, args)
        else:
            with torch.cuda.device(self.device):
                self._launch(grid, block, shared_bytes, stream, args)

    def _launch(
        self, grid: Size3, block: Size3, shared_bytes: int, stream: int | None, args: Sequence[Argument]
    ) -> None:
        if shared_bytes > self._shared_bytes:
            self._allow_shared(shared_bytes)
        if stream is None:
            # What Triton and Inductor call; torch.cuda.current_stream() builds an object around the same handle.
            stream = torch._C._cuda_getCurrentRawStream(self.device)
        pointers = self._arguments.buffer.fill(args, self.name)
        (status,) = self._launch_kernel(self._function, *grid, *block, shared_bytes, stream, pointers, 0)
        if status == self._success:
            return
        if status == _driver().CUresult.CUDA_ERROR_INVALID_CONTEXT:  # the first CUDA call of this thread
            _bind_context(self.device)
            (status,) = self._launch_kernel(self._function, *grid, *block, shared_bytes, stream, pointers, 0)
        asked = f"grid {grid}, block {block}, {shared_bytes} bytes of dynamic shared memory"
        _check(status, f"launching {self.name} on cuda:{self.device}: {asked}")

    def _allow_shared(self, shared_bytes: int) -> None:
        with self._lock:
            if shared_bytes <= self._shared_bytes:
                return
            attribute = _driver().CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            doing = f"allowing {self.name} {shared_bytes} bytes of dynamic shared memory on cuda:{self.device}"
            _call("cuFuncSetAttribute", self._function, attribute, shared_bytes, doing=doing)
            self._shared_bytes = shared_bytes


class _PerThread(threading.local):
    """The driver reads a launch's arguments while other Python threads run, so each has its own buffer."""

    def __init__(self, signature: Signature) -> None:
        self.buffer = ArgumentBuffer(signature)


def _read_attributes(function: Any, name: str) -> KernelAttributes:
    names = ("NUM_REGS", "SHARED_SIZE_BYTES", "LOCAL_SIZE_BYTES", "MAX_THREADS_PER_BLOCK")
    table = _driver().CUfunction_attribute
    doing = f"reading the attributes of {name}"
    values = (
        _call("cuFuncGetAttribute", getattr(table, f"CU_FUNC_ATTRIBUTE_{key}"), function, doing=doing) for key in names
    )
    return KernelAttributes(*values)
