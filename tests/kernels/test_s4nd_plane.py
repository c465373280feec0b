"""The convolution's CUDA programs for planes compile, agree with Python and say what does not fit; no GPU."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files
from types import SimpleNamespace

import pytest
import torch

from ssmvision.kernels.cuda import CompileError, programs
from ssmvision.kernels.cuda.compiler import compile_cubin
from ssmvision.kernels.s4nd import cuda, cuda_programs
from ssmvision.kernels.s4nd.args import ConvRequest
from ssmvision.kernels.s4nd.cuda_config import (
    backward_config,
    backward_shared_bytes,
    cut,
    forward_config,
    forward_shared_bytes,
    takes_block,
)

PROGRAMS = {program.spec.name: program for program in programs() if program.spec.package == "ssmvision.kernels.s4nd"}
FITS = ConvRequest("cuda:0", torch.bfloat16, (56, 56), 96)


def compile_plane(name: str, defines: dict[str, int], arch: str) -> bytes:
    source = PROGRAMS[name].source
    options = [f"-D{key}={value}" for key, value in defines.items()]
    return compile_cubin(source.text, name=source.name, arch=arch, options=options, headers=source.headers)


@pytest.mark.parametrize(
    ("grid", "arch"),
    [
        ((7, 13), "sm_80"),
        ((66, 9), "sm_100"),
        *((grid, "sm_90") for grid in ((1, 20), (9, 1), (3, 65))),
    ],
    ids=str,
)
def test_odd_planes_compile(grid: tuple[int, int], arch: str) -> None:
    for kio, skip, need_u in ((0, True, None), (1, False, None), (0, True, True), (1, False, False)):
        name = ("plane_block_" if takes_block(grid) else "plane_") + ("forward" if need_u is None else "backward")
        defines = cuda_programs.defines(grid, 2, False, kio, skip, need_u)
        cubin = compile_plane(name, defines, arch)
        assert all(f".text.{entry}\0".encode() in cubin for entry in PROGRAMS[name].spec.kernels)


@pytest.mark.parametrize(
    ("name", "grid"),
    [("plane_forward", (14, 9)), ("plane_backward", (14, 9)), ("plane_block_forward", (66, 9)),
     ("plane_block_backward", (66, 9)), ("plane_backward", (64, 1)), ("plane_block_backward", (128, 1))],
)  # fmt: skip
def test_shared_memory_is_counted_as_the_compiler_does(name: str, grid: tuple[int, int]) -> None:
    """Asserted in the sources, where the count is given; where sums need more than the planes did, too."""
    defines = cuda_programs.defines(grid, 2, True, 0, False, True if name.endswith("backward") else None)
    compile_plane(name, defines, "sm_90")
    with pytest.raises(CompileError, match=r"cuda_config\.py counts the shared memory too"):
        compile_plane(name, {**defines, "SHARED_BYTES": defines["SHARED_BYTES"] + 16}, "sm_90")


@pytest.mark.parametrize("structure", ["Maps", "Taps", "Plane"])
def test_parameter_blocks_have_the_fields_of_the_source(structure: str) -> None:
    text = files("ssmvision.kernels.s4nd").joinpath("csrc", "plane.cuh").read_text()
    match = re.search(rf"struct {structure} {{(.*?)\n}};", text, re.DOTALL)
    assert match is not None
    lines = re.sub(r"//.*", "", match[1]).split(";")
    declared = [part.split()[-1].strip("*") for line in lines if line.strip() for part in line.split(",")]
    assert declared == [name for name, _ in getattr(cuda_programs, structure)._fields_]


@pytest.mark.parametrize("batch", [1, 5, 128])
@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("features", [1, 96, 5000])
def test_every_image_is_in_one_chunk(batch: int, images: int, features: int) -> None:
    chunks, per = cut(batch, features, images, 132 * 8)
    assert per % images == 0
    assert (chunks - 1) * per < batch <= chunks * per


@pytest.mark.parametrize("grid", [(1, 1), (7, 64), (64, 64), (128, 128), (128, 7)], ids=str)
def test_a_multiprocessor_holds_the_blocks_that_it_is_asked_for(grid: tuple[int, int]) -> None:
    """An H100's has 228 KiB of shared memory, and a block takes 1 KiB more than it asks for."""
    forward, backward = forward_config(grid), backward_config(grid)
    for config, size in (
        (forward, forward_shared_bytes(grid, forward)),
        (backward, backward_shared_bytes(grid, backward)),
    ):
        assert config.blocks * (size + 1024) <= 228 * 1024


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"device": "cpu"}, "not a CUDA device"),
        ({"grid": (8, 8, 8)}, "for planes"),
        ({"rank": 2}, "rank 1"),
        ({"channels": 2}, "one channel"),
        ({"dense": True}, "not dense"),
        ({"dtype": torch.float32}, "computes in bfloat16, this is torch.float32 with precision='auto'"),
        ({"dtype": torch.float16}, "computes in bfloat16"),
        ({"precision": "fp32"}, "precision='fp32'"),
        ({"precision": "tf32"}, "precision='tf32'"),
        ({"grid": (129, 8)}, "longer than 128"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused_with_a_reason(change: dict[str, object], reason: str) -> None:
    refused = cuda.can_run(replace(FITS, **change))  # type: ignore[arg-type]
    assert refused is not None
    assert reason in refused


@pytest.mark.parametrize(
    ("capability", "shared", "grid", "reason"),
    [
        ((9, 0), 232448, (128, 128), None),
        ((8, 0), 166912, (128, 128), "takes 189,952 bytes of shared memory a block, and the GPU has 166,912"),
        ((8, 0), 166912, (96, 96), None),
        ((7, 5), 65536, (14, 14), "compute capability 8.0"),
    ],
)
def test_what_the_gpu_lacks_is_said(
    capability: tuple[int, int], shared: int, grid: tuple[int, int], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = SimpleNamespace(major=capability[0], minor=capability[1], shared_memory_per_block_optin=shared)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(cuda, "available", lambda device: None)
    refused = cuda.can_run(replace(FITS, grid=grid))
    if reason is None:
        assert refused is None
    else:
        assert refused is not None
        assert reason in refused
