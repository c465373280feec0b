"""Launches on real devices: `pytest -m gpu tests/kernels/test_cuda_gpu.py`. With one device the device-guard test
covers that one; with several it covers them all from device 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmvision.cli import main
from ssmvision.kernels.cuda import cache, program
from ssmvision.kernels.cuda.availability import available, device_arch
from ssmvision.kernels.cuda.driver import CudaError, Kernel, load_kernels
from ssmvision.kernels.cuda.program import Program
from tests.kernels.cuda_programs import KERNELS, Offset, make_program, write_package

pytestmark = pytest.mark.gpu
SIZE = 1000


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv(cache.ENV_VAR, str(tmp_path / "cache"))
    write_package(tmp_path, "op_on_a_gpu")
    monkeypatch.syspath_prepend(str(tmp_path))
    return make_program("op_on_a_gpu")


@pytest.fixture
def scale(made: Program) -> Kernel:
    return made.variant({"FACTOR": 3}).kernel("scale", 0)


@pytest.fixture
def x() -> Iterator[Tensor]:
    yield torch.arange(SIZE, device="cuda:0").remainder(128).bfloat16()
    torch.cuda.synchronize()


def launch(kernel: Kernel, x: Tensor, out: Tensor, stream: int | None = None) -> None:
    kernel.launch(((SIZE + 127) // 128, 1, 1), (128, 1, 1), 0, stream, (x, Offset(0.5, SIZE), out))


def test_every_device_here_can_be_used() -> None:
    assert [available(index) for index in range(torch.cuda.device_count())] == [None] * torch.cuda.device_count()
    assert available("cuda") is None
    assert available(torch.cuda.device_count()) == f"there is no cuda:{torch.cuda.device_count()}"


def test_a_launch_computes(scale: Kernel, x: Tensor) -> None:
    out = torch.full((SIZE + 1,), -1.0, device=x.device)
    launch(scale, x, out)
    assert torch.equal(out[:SIZE], 3 * x.float() + 0.5)
    assert out[SIZE] == -1


def test_a_kernel_is_looked_up_after_the_first_call(made: Program) -> None:
    variant = made.variant({"FACTOR": 2})
    assert variant.kernel("scale", 0) is variant.kernel("scale", 0)
    with pytest.raises(ValueError, match="program scaling has no kernel 'shrink'; it has scale, fill"):
        variant.kernel("shrink", 0)


def test_attributes_are_the_devices(scale: Kernel) -> None:
    attributes = scale.attributes()
    assert 0 < attributes.registers <= 255
    assert (attributes.local_bytes, attributes.shared_bytes, attributes.max_threads) == (0, 0, 1024)


def test_the_current_stream_and_a_stated_one_are_obeyed(scale: Kernel, x: Tensor) -> None:
    side, out = torch.cuda.Stream(), torch.zeros(SIZE, device=x.device)
    for stated in (False, True):
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(50_000_000)
            late = x + 1 + stated  # not what the allocator's block may hold already
            if not stated:
                launch(scale, late, out.zero_())
        if stated:
            with torch.cuda.stream(side):
                out.zero_()
            launch(scale, late, out, side.cuda_stream)
        side.synchronize()
        assert torch.equal(out, 3 * late.float() + 0.5)


def test_a_device_that_is_not_current_is_launched_on(made: Program) -> None:
    for index in range(torch.cuda.device_count()):
        kernel = made.variant({"FACTOR": 2}).kernel("scale", index)
        x = torch.ones(SIZE, device=f"cuda:{index}").bfloat16()
        out = torch.zeros(SIZE, device=x.device)
        with torch.cuda.device(0):
            launch(kernel, x, out)
            assert torch.cuda.current_device() == 0
        assert torch.equal(out, torch.full_like(out, 2.5))


def test_a_new_thread_may_launch_first(scale: Kernel, x: Tensor) -> None:
    outs = [torch.zeros(SIZE, device=x.device) for _ in range(4)]
    failures: list[BaseException] = []

    def work(out: Tensor) -> None:
        try:
            for _ in range(200):
                launch(scale, x, out)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(out,)) for out in outs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    torch.cuda.synchronize()
    for out in outs:
        assert torch.equal(out, 3 * x.float() + 0.5)


def test_a_graph_captures_a_kernel_first_loaded_inside_it(made: Program, x: Tensor) -> None:
    out, graph = torch.zeros(SIZE, device=x.device), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch(made.variant({"FACTOR": 5}).kernel("scale", 0), x, out)
    assert not out.any()
    graph.replay()
    assert torch.equal(out, 5 * x.float() + 0.5)
    x.copy_(x + 1)
    graph.replay()
    assert torch.equal(out, 5 * x.float() + 0.5)


def test_more_than_48_kib_of_shared_memory(made: Program) -> None:
    kernel, out = made.variant({"FACTOR": 2}).kernel("fill", 0), torch.zeros(64, device="cuda:0")
    kernel.launch((1, 1, 1), (64, 1, 1), 96 * 1024, None, (out, 64, 7.0))
    assert torch.equal(out, torch.full_like(out, 7.0))
    with pytest.raises(CudaError, match=r"CUDA_ERROR_INVALID_VALUE.*allowing fill 1048576 bytes"):
        kernel.launch((1, 1, 1), (64, 1, 1), 1 << 20, None, (out, 64, 7.0))


def test_errors_of_the_real_driver_name_the_kernel(made: Program, scale: Kernel, x: Tensor) -> None:
    with pytest.raises(CudaError, match=r"CUDA_ERROR_INVALID_VALUE \(.+\) launching scale on cuda:0"):
        scale.launch((0, 1, 1), (128, 1, 1), 0, None, (x, Offset(0.5, SIZE), x))
    cubin = made.variant({"FACTOR": 2}).build(device_arch(0)).cubin
    with pytest.raises(CudaError, match=r"CUDA_ERROR_NOT_FOUND .* kernel missing"):
        load_kernels(cubin, {"missing": ()}, 0)
    with pytest.raises(CudaError, match=r"CUDA_ERROR_.* loading scale, fill on cuda:0"):
        load_kernels(b"no cubin at all", KERNELS, 0)
    launch(scale, x, torch.zeros(SIZE, device=x.device))  # none of these breaks the context
    torch.cuda.synchronize()


def test_a_launch_takes_a_few_microseconds(scale: Kernel, x: Tensor) -> None:
    out, rounds = torch.zeros(SIZE, device=x.device), []
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(200):
            launch(scale, x, out)
        rounds.append((time.perf_counter() - start) / 200 * 1e6)
    print(f"launch of 3 arguments: {sorted(rounds)[10]:.2f} us, best {min(rounds):.2f} us")
    assert min(rounds) < 10


def test_native_is_this_machines_architecture(
    made: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ssmvision.ops  # noqa: F401  (registers the package's own before the table is replaced)

    monkeypatch.setattr(program, "_PROGRAMS", {})
    program.register_program(made.spec)
    assert main(["kernels", "build"]) == 0
    assert f"{device_arch(0)}  " in capsys.readouterr().out
