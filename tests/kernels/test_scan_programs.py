"""The scan's CUDA sources compile for every architecture they are written for; no GPU is needed."""

from __future__ import annotations

import ctypes
import re
from importlib.resources import files

import pytest

import ssmvision.ops  # noqa: F401  (registers the programs)
from ssmvision.kernels.cuda import programs
from ssmvision.kernels.cuda.compiler import compile_cubin
from ssmvision.kernels.selective_scan import config, cuda_programs

SCAN = [program for program in programs() if program.spec.name.startswith("scan_")]
CSRC = files("ssmvision.kernels.selective_scan").joinpath("csrc")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("name", [program.spec.name for program in SCAN])
def test_first_and_last_variant_compile(name: str, arch: str) -> None:
    """The narrowest and the widest of what ships; `ssmvision kernels build` builds them all."""
    program = next(p for p in SCAN if p.spec.name == name)
    shipped = program.shipped()
    for variant in (shipped[0], shipped[-1]):
        options = [f"-D{key}={value}" for key, value in variant.defines.items()]
        source = program.source
        cubin = compile_cubin(source.text, name=source.name, arch=arch, options=options, headers=source.headers)
        assert cubin.startswith(b"\x7fELF")


@pytest.mark.parametrize("structure", ["Scan", "ForwardOut", "BackwardOut"])
def test_parameter_blocks_have_the_fields_of_the_source(structure: str) -> None:
    """Same names in the same order: a field that is missing on one side would shift all that follow."""
    text = "".join(CSRC.joinpath(file).read_text() for file in ("common.cuh", "forward.cu", "backward.cu"))
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
    assert f"constexpr int CHUNK = {config.CHUNK};" in text
    assert ctypes.sizeof(cuda_programs.Scan) % 8 == 0
