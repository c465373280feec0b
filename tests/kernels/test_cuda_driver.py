from __future__ import annotations

import ctypes
import struct
from ctypes import Structure, c_bool, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssmvision.kernels.cuda import driver
from ssmvision.kernels.cuda.driver import CudaError, Kernel
from ssmvision.kernels.cuda.host import aligned
from ssmvision.kernels.cuda.signature import ArgumentBuffer, Signature
from tests.kernels.cuda_programs import KERNELS, Offset

bindings = driver._driver()


def read_arguments(address: int, parameters: tuple[type[Any], ...]) -> list[Any]:
    """What the driver would copy: a table of pointers, each to a value of its parameter's type."""
    table = (c_void_p * len(parameters)).from_address(address)
    values = [kind.from_address(pointer) for kind, pointer in zip(parameters, table, strict=True)]
    return [value if isinstance(value, Structure) else value.value for value in values]


def test_every_type_arrives_at_its_address() -> None:
    class Wide(Structure):
        _fields_ = (("pointer", c_void_p), ("size", c_int32), ("flag", c_bool), ("tail", c_int32))

    kinds = (c_void_p, c_bool, c_int32, c_float, Wide, c_int64, c_double, c_void_p, c_void_p)
    buffer, tensor = ArgumentBuffer(Signature(kinds)), torch.ones(3)
    wide = Wide(7, 8, True, 9)
    address = buffer.fill((tensor, True, -5, 1.5, wide, 2**40, 0.1, None, 1234), "k")
    got = read_arguments(address, kinds)
    assert got[:4] == [tensor.data_ptr(), True, -5, 1.5]
    assert bytes(got[4]) == bytes(wide)
    assert got[5:] == [2**40, 0.1, None, 1234]
    assert all((pointer or 1) % 8 == 0 for pointer in (c_void_p * len(kinds)).from_address(address))
    assert buffer.fill((None, False, 1, 0.0, wide, 0, 0.0, 1, 1), "k") == address


def test_a_kernel_without_parameters_has_a_table_too() -> None:
    assert ArgumentBuffer(Signature(())).fill((), "k") > 0


@pytest.mark.parametrize(
    "args",
    [(None, 1), (None, 1, 2.0, 3), (None, 1.5, 2.0), (None, "1", 2.0), (object(), 1, 2.0), (None, 2**31, 2.0)],
)
def test_wrong_arguments_name_the_kernel_and_the_types(args: tuple[Any, ...]) -> None:
    buffer = ArgumentBuffer(Signature((c_void_p, c_int32, c_float)))
    with pytest.raises(TypeError, match=r"kernel fill takes \(c_void_p, c_int, c_float\), it was given \("):
        buffer.fill(args, "fill")


def test_a_structure_of_another_type_is_refused() -> None:
    class Other(Structure):
        _fields_ = Offset._fields_

    buffer = ArgumentBuffer(Signature((Offset,)))
    with pytest.raises(TypeError, match="argument 0 is no Offset"):
        buffer.fill((Other(1.0, 2),), "scale")


def test_an_unsupported_type_is_refused() -> None:
    with pytest.raises(ValueError, match="c_char_p"):
        Signature((c_char_p,))


class FakeDriver:
    """Records launches and answers as the driver would; the names and numbers are the real bindings'."""

    CUresult = bindings.CUresult
    CUfunction_attribute = bindings.CUfunction_attribute

    def __init__(self, parameters: tuple[type[Any], ...], *statuses: str) -> None:
        self.parameters = parameters
        self.statuses = [getattr(self.CUresult, f"CUDA_{status}") for status in statuses]
        self.launches: list[tuple[Any, ...]] = []
        self.bound: list[str] = []
        self.shared: list[int] = []
        self.ok = self.CUresult.CUDA_SUCCESS

    def cuLaunchKernel(self, function: str, *rest: Any) -> tuple[Any]:  # noqa: N802
        *launch, pointers, extra = rest
        assert extra == 0
        self.launches.append((function, *launch, read_arguments(pointers, self.parameters)))
        return (self.statuses.pop(0) if self.statuses else self.ok,)

    def cuFuncGetAttribute(self, attribute: Any, function: str) -> tuple[Any, int]:  # noqa: N802
        values = {"NUM_REGS": 32, "SHARED_SIZE_BYTES": 1024, "LOCAL_SIZE_BYTES": 0, "MAX_THREADS_PER_BLOCK": 512}
        return self.ok, values[attribute.name.removeprefix("CU_FUNC_ATTRIBUTE_")]

    def cuFuncSetAttribute(self, function: str, attribute: Any, value: int) -> tuple[Any]:  # noqa: N802
        assert attribute.name == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
        self.shared.append(value)
        return (self.ok if value <= 227 * 1024 else self.CUresult.CUDA_ERROR_INVALID_VALUE,)

    def cuGetErrorString(self, status: Any) -> tuple[Any, bytes]:  # noqa: N802
        return self.ok, b"as the driver puts it"

    def cuCtxGetCurrent(self) -> tuple[Any, int]:  # noqa: N802
        return self.ok, 0

    def cuCtxSetCurrent(self, context: str) -> tuple[Any]:  # noqa: N802
        self.bound.append(context)
        return (self.ok,)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver(KERNELS["fill"])
    monkeypatch.setattr(driver, "_driver", lambda: made)
    monkeypatch.setattr(driver, "_primary_context", lambda device: f"context of {device}")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return made


def make_kernel(device: int = 0) -> Kernel:
    return Kernel("function", "fill", device, Signature(KERNELS["fill"]))


def test_a_launch_hands_everything_on(fake: FakeDriver) -> None:
    kernel, out = make_kernel(), torch.zeros(4)
    kernel.launch((1, 2, 3), (32, 1, 1), 128, 77, (out, 4, 0.5))
    assert fake.launches == [("function", 1, 2, 3, 32, 1, 1, 128, 77, [out.data_ptr(), 4, 0.5])]
    assert fake.shared == []
    assert kernel.attributes() == driver.KernelAttributes(
        registers=32, shared_bytes=1024, local_bytes=0, max_threads=512
    )


def test_large_shared_memory_is_asked_for_once(fake: FakeDriver) -> None:
    kernel = make_kernel()
    for size in (47 * 1024, 47 * 1024 + 1, 100_000, 60_000, 100_000):  # 1 KiB of the default 48 is static
        kernel.launch((1, 1, 1), (32, 1, 1), size, 0, (None, 4, 0.5))
    assert fake.shared == [47 * 1024 + 1, 100_000]
    with pytest.raises(CudaError, match=r"CUDA_ERROR_INVALID_VALUE.*allowing fill 300000 bytes"):
        kernel.launch((1, 1, 1), (32, 1, 1), 300_000, 0, (None, 4, 0.5))
    assert len(fake.launches) == 5


def test_a_thread_without_a_context_gets_one_and_launches(fake: FakeDriver) -> None:
    fake.statuses = [fake.CUresult.CUDA_ERROR_INVALID_CONTEXT]
    make_kernel().launch((1, 1, 1), (32, 1, 1), 0, 0, (None, 4, 0.5))
    assert fake.bound == ["context of 0"]
    assert len(fake.launches) == 2
    assert fake.launches[0] == fake.launches[1]


def test_a_refused_launch_names_error_kernel_and_request(fake: FakeDriver) -> None:
    fake.statuses = [fake.CUresult.CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES]
    with pytest.raises(CudaError) as caught:
        make_kernel().launch((1, 1, 1), (2048, 1, 1), 0, 0, (None, 4, 0.5))
    assert str(caught.value) == (
        "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES (as the driver puts it) launching fill on cuda:0: "
        "grid (1, 1, 1), block (2048, 1, 1), 0 bytes of dynamic shared memory"
    )


def test_another_device_is_made_current_for_the_launch(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = []

    class Guard:
        def __init__(self, device: int) -> None:
            self.device = device

        def __enter__(self) -> None:
            events.append(("enter", self.device, len(fake.launches)))

        def __exit__(self, *error: object) -> None:
            events.append(("exit", self.device, len(fake.launches)))

    monkeypatch.setattr(torch.cuda, "device", Guard)
    make_kernel(device=1).launch((1, 1, 1), (32, 1, 1), 0, 5, (None, 4, 0.5))
    assert events == [("enter", 1, 0), ("exit", 1, 1)]


def test_torchs_current_stream_is_the_default(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_C", SimpleNamespace(_cuda_getCurrentRawStream=lambda device: 1000 + device))
    Kernel("function", "fill", 0, Signature(KERNELS["fill"])).launch((1, 1, 1), (1, 1, 1), 0, None, (None, 4, 0.5))
    assert fake.launches[0][8] == 1000


def test_the_layout_of_a_structure_is_the_compilers() -> None:
    assert ctypes.sizeof(Offset) == struct.calcsize("fi") == 8


@pytest.mark.parametrize(
    ("size", "strides", "offset", "expected"),
    [
        ((2, 3, 8), (24, 8, 1), 0, 4),
        ((2, 3, 8), (24, 8, 1), 2, 2),
        ((2, 3, 8), (24, 8, 1), 1, 1),
        ((2, 3, 6), (24, 6, 1), 0, 2),
        ((2, 3, 8), (27, 9, 1), 0, 1),
        ((1, 1, 8), (27, 9, 1), 0, 4),  # a stride that is never taken
    ],
)
def test_as_much_is_read_at_once_as_every_row_allows(
    size: tuple[int, ...], strides: tuple[int, ...], offset: int, expected: int
) -> None:
    assert aligned(None, torch.zeros(100).as_strided(size, strides, offset), torch.zeros(8)) == expected
