"""Programs: a CUDA source of the package, its kernels, and the sets of definitions that it is compiled with."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from ssmvision.kernels.cuda.cache import cached, entry_path, key_of, read_entry
from ssmvision.kernels.cuda.compiler import compile_cubin
from ssmvision.kernels.cuda.signature import Parameters
from ssmvision.kernels.cuda.sources import Source, read_source
from ssmvision.kernels.cuda.toolkit import toolkit_digest

if TYPE_CHECKING:
    from ssmvision.kernels.cuda.driver import Kernel

__all__ = ["Build", "Defines", "Program", "ProgramSpec", "Variant", "kernel", "programs", "register_program"]

# Macro definitions: name -> value.
Defines = Mapping[str, str | int]
logger = logging.getLogger("ssmvision")
IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True, eq=False)
class ProgramSpec:
    """What a program is made of.

    Attributes:
        name: unique; what messages and `ssmvision kernels build` call it.
        package: import name of the package that holds the source.
        source: its path below the package, such as "csrc/scan.cu"; see `sources.read_source` for its headers.
        kernels: name of every `extern "C" __global__` kernel -> its parameters' types; see `signature.Parameters`.
        variants: the definitions of every variant that the op uses, for building ahead of the first call. Others are
            allowed and are compiled when asked for.
        options: further NVRTC options of all variants, such as "--use_fast_math".
    """

    name: str
    package: str
    source: str
    kernels: Mapping[str, Parameters]
    variants: Sequence[Defines]
    options: Sequence[str] = ()


class Build(NamedTuple):
    """A compiled variant: its cubin, whether it came from the disk, and the time it took in seconds."""

    cubin: bytes
    from_disk: bool
    seconds: float


class Variant:
    """A program with one set of definitions; made by `Program.variant`."""

    def __init__(self, program: Program, defines: Defines) -> None:
        self.program = program
        self.defines = MappingProxyType(dict(sorted(defines.items())))
        self._lock = threading.Lock()
        self._cubins: dict[str, bytes] = {}
        self._kernels: dict[tuple[str, int], Kernel] = {}

    @property
    def label(self) -> str:
        """The program's name and the definitions, for people."""
        return " ".join([self.program.spec.name, *(f"{name}={value}" for name, value in self.defines.items())])

    def is_stored(self, arch: str) -> bool:
        """Whether the disk holds an intact build for `arch`."""
        return read_entry(entry_path(*self._entry(arch))) is not None

    def build(self, arch: str) -> Build:
        """Read the variant's cubin from the disk, or compile and store it.

        Raises:
            CompileError, MissingToolkitError: see `compiler.compile_cubin`.
        """
        start = time.perf_counter()
        cubin, from_disk = cached(*self._entry(arch), lambda: self._compile(arch))
        return Build(cubin, from_disk, time.perf_counter() - start)

    def kernel(self, name: str, device: int) -> Kernel:
        """A kernel of this variant, loaded on a device; the second call for the same is a look-up.

        Args:
            name: one of the program's kernels.
            device: index of a CUDA device.

        Raises:
            ValueError: the program has no kernel of that name, or NVRTC is older than the device.
            CompileError, MissingToolkitError: see `compiler.compile_cubin`.
            CudaError: the driver cannot load it.
        """
        kernel = self._kernels.get((name, device))
        if kernel is not None:
            return kernel
        with self._lock:
            if (name, device) not in self._kernels:
                self._load(name, device)
            return self._kernels[name, device]

    def _load(self, name: str, device: int) -> None:
        """All kernels of the cubin, so that none is left to be loaded later, inside a graph capture perhaps."""
        from ssmvision.kernels.cuda.availability import device_arch
        from ssmvision.kernels.cuda.driver import load_kernels

        signatures = self.program.spec.kernels
        if name not in signatures:
            raise ValueError(f"program {self.program.spec.name} has no kernel {name!r}; it has {', '.join(signatures)}")
        arch = device_arch(device)
        if arch not in self._cubins:
            self._cubins[arch] = self.build(arch).cubin
        for entry, kernel in load_kernels(self._cubins[arch], signatures, device).items():
            self._kernels[entry, device] = kernel

    @property
    def _options(self) -> list[str]:
        return [*self.program.spec.options, *(f"-D{name}={value}" for name, value in self.defines.items())]

    def _entry(self, arch: str) -> tuple[str, str]:
        source = self.program.source
        headers = [part for item in source.headers.items() for part in item]
        options = [str(len(self._options)), *self._options]
        key = key_of([toolkit_digest(), arch, *options, source.name, source.text, *headers])
        return f"{self.program.spec.name}-{arch}", key

    def _compile(self, arch: str) -> bytes:
        source = self.program.source
        logger.info("compiling the CUDA kernel %s for %s", self.label, arch)
        return compile_cubin(source.text, name=source.name, arch=arch, options=self._options, headers=source.headers)


class Program:
    """A registered `ProgramSpec` and its variants in this process; made by `register_program`."""

    def __init__(self, spec: ProgramSpec) -> None:
        self.spec = spec
        self._lock = threading.Lock()
        self._variants: dict[tuple[tuple[str, str | int], ...], Variant] = {}

    @cached_property
    def source(self) -> Source:
        """The program's text, read once."""
        return read_source(self.spec.package, self.spec.source)

    def variant(self, defines: Defines) -> Variant:
        """The program with these definitions; nothing is compiled yet.

        Raises:
            ValueError: a name is no identifier, or a value spans lines.
        """
        key = tuple(sorted(defines.items()))
        with self._lock:
            if key not in self._variants:
                _check_defines(self.spec.name, defines)
                self._variants[key] = Variant(self, defines)
            return self._variants[key]

    def shipped(self) -> list[Variant]:
        """The variants named by the spec."""
        return [self.variant(defines) for defines in self.spec.variants]


def _check_defines(program: str, defines: Defines) -> None:
    for name, value in defines.items():
        if not IDENTIFIER.fullmatch(name):
            raise ValueError(f"program {program}: {name!r} is no macro name")
        if len(str(value).splitlines()) > 1:
            raise ValueError(f"program {program}: the value of {name} spans lines")


_PROGRAMS: dict[str, Program] = {}


def register_program(spec: ProgramSpec) -> Program:
    """Add a program to those that `ssmvision kernels build` knows; done once, where the op's backend is defined.

    Raises:
        ValueError: another program has that name.
    """
    if spec.name in _PROGRAMS:
        raise ValueError(f"a CUDA program named {spec.name} is registered already")
    _PROGRAMS[spec.name] = Program(spec)
    return _PROGRAMS[spec.name]


def kernel(program: str, name: str, defines: Defines, device: int) -> Kernel:
    """A kernel of a registered program, compiled or read from the disk where needed, and loaded on a device.

    Args:
        program: name of the program.
        name: of the kernel.
        defines: macro definitions of the variant.
        device: index of a CUDA device.

    Raises:
        ValueError: there is no such program, kernel or macro name, or NVRTC is older than the device.
        CompileError, CudaError, MissingToolkitError: see `Variant.kernel`.
    """
    if program not in _PROGRAMS:
        raise ValueError(f"no CUDA program is named {program!r}; registered: {', '.join(_PROGRAMS) or 'none'}")
    return _PROGRAMS[program].variant(defines).kernel(name, device)


def programs() -> tuple[Program, ...]:
    """All registered programs."""
    return tuple(_PROGRAMS.values())
