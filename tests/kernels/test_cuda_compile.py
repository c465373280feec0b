from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from ssmvision.kernels.cuda import toolkit
from ssmvision.kernels.cuda.availability import available, best_arch, compilable_archs
from ssmvision.kernels.cuda.compiler import CompileError, compile_cubin, supported_archs
from ssmvision.kernels.cuda.sources import read_source
from tests.kernels.cuda_programs import HEADERS, SOURCE, write_package

DOUBLE = """#include <cuda_bf16.h>
#include <cuda_fp16.h>
extern "C" __global__ void twice(__nv_bfloat16* p, __half* q, int n) {
  if (threadIdx.x < n) p[threadIdx.x] = __float2bfloat16(2 * __half2float(q[threadIdx.x]));
}
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_compiles_with_half_precision_headers(arch: str) -> None:
    cubin = compile_cubin(DOUBLE, name="twice.cu", arch=arch)
    assert cubin[:4] == b"\x7fELF"
    assert b"twice" in cubin
    assert int.from_bytes(cubin[18:20], "little") == 190  # EM_CUDA
    assert arch in supported_archs()


def test_needs_no_program_on_the_path_and_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from ssmvision.kernels.cuda.compiler import compile_cubin\n"
        f"cubin = compile_cubin({DOUBLE!r}, name='twice.cu', arch='sm_90')\n"
        "assert cubin[:4] == b'\\x7fELF' and 'torch' not in sys.modules; print('compiled')"
    )
    environment = {"PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout == "compiled\n", done.stderr


def test_headers_of_ours_are_found_also_from_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "op_with_headers")
    monkeypatch.syspath_prepend(str(tmp_path))
    source = read_source("op_with_headers", "csrc/kernel.cu")
    assert (source.name, source.text, source.headers) == ("kernel.cu", SOURCE, HEADERS)
    cubin = compile_cubin(source.text, name=source.name, arch="sm_90", options=["-DFACTOR=2"], headers=source.headers)
    assert b"scale" in cubin
    assert b"fill" in cubin


def test_a_missing_file_names_who_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, "op_without_header", '#include "types.cuh"\n')
    (tmp_path / "op_without_header" / "csrc" / "detail" / "scale.cuh").unlink()
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'types\.cuh includes "detail/scale\.cuh"'):
        read_source("op_without_header", "csrc/kernel.cu")
    with pytest.raises(FileNotFoundError, match=r"op_without_header holds no csrc/other\.cu"):
        read_source("op_without_header", "csrc/other.cu")


def test_an_error_shows_the_line_at_fault() -> None:
    broken = DOUBLE + 'extern "C" __global__ void wrong(float* p) {\n  p[0] = unheard_of + 1;\n}\n'
    with pytest.raises(CompileError) as caught:
        compile_cubin(broken, name="twice.cu", arch="sm_90", options=["-DN=16"])
    message = str(caught.value)
    assert message.startswith("twice.cu does not compile (NVRTC_ERROR_COMPILATION")
    assert "-DN=16" in message
    assert "twice.cu(7)" in message
    assert "p[0] = unheard_of + 1;" in message


def test_an_error_in_a_header_shows_the_headers_line() -> None:
    with pytest.raises(CompileError, match=r"(?s)bad\.cuh\(2\).*float x = missing_name;"):
        compile_cubin(
            '#include "bad.cuh"\n', name="k.cu", arch="sm_80",
            headers={"bad.cuh": "\n__device__ float x = missing_name;\n"},
        )  # fmt: skip


def test_an_unknown_architecture_or_option_is_a_compile_error() -> None:
    with pytest.raises(CompileError, match="sm_91"):
        compile_cubin(DOUBLE, name="twice.cu", arch="sm_91")
    with pytest.raises(CompileError, match="--no-such-option"):
        compile_cubin(DOUBLE, name="twice.cu", arch="sm_90", options=["--no-such-option"])


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Empty what the toolkit's look-ups remember, before and after."""
    found = (toolkit.nvrtc, toolkit.include_folder, toolkit.toolkit_digest)
    for function in found:
        function.cache_clear()
    yield
    for function in found:
        function.cache_clear()


@pytest.mark.usefixtures("forgetful")
def test_what_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(toolkit, "version", absent)
    with pytest.raises(toolkit.MissingToolkitError, match="pip install cuda-bindings"):
        toolkit.nvrtc()
    with pytest.raises(toolkit.MissingToolkitError, match="pip install cuda-bindings"):
        toolkit.include_folder()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(("release", "suffix"), [("13.0.3", ""), ("12.9.1", "-cu12")])
def test_missing_library_and_headers_name_the_wheel(release: str, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unloadable(name: str) -> object:
        raise RuntimeError("no libnvrtc on this machine")

    monkeypatch.setattr(toolkit, "version", lambda name: release)
    monkeypatch.setattr(toolkit, "find_spec", lambda name: None)
    monkeypatch.setattr(toolkit, "distribution", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
    with pytest.raises(toolkit.MissingToolkitError, match=rf"pip install nvidia-cuda-runtime{suffix}$"):
        toolkit.include_folder()
    monkeypatch.setattr(toolkit, "import_module", unloadable)
    with pytest.raises(toolkit.MissingToolkitError, match=rf"no libnvrtc.*pip install nvidia-cuda-nvrtc{suffix}$"):
        toolkit.nvrtc()


@pytest.mark.parametrize(
    ("capability", "expected"), [((8, 0), "sm_80"), ((8, 9), "sm_86"), ((9, 0), "sm_90"), ((12, 1), "sm_120")]
)
def test_a_device_gets_the_newest_architecture_that_runs_on_it(capability: tuple[int, int], expected: str) -> None:
    assert best_arch(capability, ("sm_80", "sm_86", "sm_90", "sm_100", "sm_120")) == expected


def test_a_device_newer_than_the_compiler_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot compile for sm_100"):
        best_arch((10, 0), ("sm_80", "sm_90"))
    with pytest.raises(ValueError, match="cannot compile for sm_80"):
        best_arch((8, 0), ("sm_86", "sm_90"))
    assert "sm_75" not in compilable_archs()


def test_devices_that_cannot_run_give_a_reason() -> None:
    assert available("cpu") == "cpu is not a CUDA device"
    assert "'warp'" in (available("warp") or "")


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, ssmvision.kernels.cuda, ssmvision.cli.kernels; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
