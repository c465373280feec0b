"""CUDA C++ at run time: NVRTC compiles, a disk cache keeps the cubins, the driver API launches them.

Needs no toolkit and no host compiler; what it does need comes with torch's own CUDA wheels. Importing this package
loads neither torch nor CUDA.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssmvision.kernels.cuda.availability import available
    from ssmvision.kernels.cuda.compiler import CompileError
    from ssmvision.kernels.cuda.driver import CudaError, Kernel
    from ssmvision.kernels.cuda.program import Program, ProgramSpec, kernel, programs, register_program
    from ssmvision.kernels.cuda.toolkit import MissingToolkitError

__all__ = [
    "CompileError",
    "CudaError",
    "Kernel",
    "MissingToolkitError",
    "Program",
    "ProgramSpec",
    "available",
    "kernel",
    "programs",
    "register_program",
]

_HOMES = {
    "availability": ("available",),
    "compiler": ("CompileError",),
    "driver": ("CudaError", "Kernel"),
    "program": ("Program", "ProgramSpec", "kernel", "programs", "register_program"),
    "toolkit": ("MissingToolkitError",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name!r}")
