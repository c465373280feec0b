"""What is built ahead compiles for every architecture it is written for, and agrees with Python; no GPU is needed."""

from __future__ import annotations

import ctypes
import os
import re
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

import ssmvision.kernels
from ssmvision.kernels.cuda import CompileError, programs
from ssmvision.kernels.cuda.compiler import compile_cubin
from ssmvision.kernels.selective_scan import config, cuda_programs
from ssmvision.kernels.selective_scan.cuda import backward_shared_bytes
from ssmvision.kernels.selective_scan.cuda_programs import IO

KERNELS = Path(str(ssmvision.kernels.__file__)).parent
for module in sorted(KERNELS.glob("*/cuda_programs.py")):
    import_module(f"ssmvision.kernels.{module.parent.name}.cuda_programs")  # registers the op's programs
ARCHS = ("sm_80", "sm_90", "sm_100")
CSRC = files("ssmvision.kernels.selective_scan").joinpath("csrc")


@pytest.mark.slow
@pytest.mark.parametrize("name", [program.spec.name for program in programs()])
def test_every_shipped_variant_compiles(name: str) -> None:
    """As `ssmvision kernels build` builds it: a variant that the disk holds for this very source counts as compiled.

    Each is compiled for one architecture, the next for the next one, the first for all; `make kernels` leaves none out.
    """
    (program,) = (program for program in programs() if program.spec.name == name)
    variants = program.shipped()
    assert variants, "nothing of it is built ahead, so nothing is checked here; name its variants in its ProgramSpec"
    # Lists of variants often go round three dtypes, which are not to meet the same architecture each time.
    work = [(variant, ARCHS[(i + i // 3) % 3]) for i, variant in enumerate(variants)]
    work += [(variants[0], arch) for arch in ARCHS[1:]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the compiler runs outside Python's lock
        builds = list(pool.map(lambda pair: pair[0].build(pair[1]), work))
    for (variant, _), build in zip(work, builds, strict=True):
        missing = [kernel for kernel in program.spec.kernels if f".text.{kernel}\0".encode() not in build.cubin]
        assert not missing, variant.label


@pytest.mark.parametrize("structure", ["Stream", "Scan", "ForwardOut", "StateOut", "BackwardOut"])
def test_parameter_blocks_have_the_fields_of_the_source(structure: str) -> None:
    """Same names in the same order: a field that is missing on one side would shift all that follow."""
    text = "".join(CSRC.joinpath(file).read_text() for file in ("common.cuh", "forward.cu", "state.cu", "backward.cu"))
    match = re.search(rf"struct {structure} {{(.*?)\n}};", text, re.DOTALL)
    assert match is not None
    body = re.sub(r"//.*", "", match[1])
    declared = [name.strip(" *\n") for line in body.split(";") if line.strip() for name in _names(line)]
    ours = [name for name, _ in getattr(cuda_programs, structure)._fields_]
    assert declared == ours


def _names(declaration: str) -> list[str]:
    """Names in "const float *a, *b"."""
    first, *rest = declaration.split(",")
    return [first.split()[-1], *rest]


def test_constants_agree_with_the_source() -> None:
    text = CSRC.joinpath("common.cuh").read_text()
    assert f"constexpr int CHUNK = {config.CUDA_CHUNK};" in text
    assert ctypes.sizeof(cuda_programs.Scan) % 8 == 0


@pytest.mark.parametrize("io", IO.values())
@pytest.mark.parametrize(("states", "gate", "mail"), [(4, 0, 1), (8, 1, 0), (16, 0, 0), (16, 1, 1)])
def test_shared_memory_of_the_backward_is_counted_as_the_compiler_does(
    states: int, gate: int, mail: int, io: int
) -> None:
    """Asserted in the source, where the count is given."""
    (program,) = (program for program in programs() if program.spec.name == "scan_backward")
    first = dict(program.shipped()[0].defines)
    size = backward_shared_bytes(states, 4 if io == 0 else 2, gate, mail)
    defines = {**first, "IO": io, "NS": states, "VEC": 0, "GATE": gate, "MAIL": mail, "SHARED_BYTES": size}
    options = [f"-D{name}={value}" for name, value in defines.items()]
    source = program.source
    compile_cubin(source.text, name=source.name, arch="sm_90", options=options, headers=source.headers)
    options[-1] = f"-DSHARED_BYTES={size + 16}"
    with pytest.raises(CompileError, match=r"cuda\.py counts the shared memory too"):
        compile_cubin(source.text, name=source.name, arch="sm_90", options=options, headers=source.headers)
