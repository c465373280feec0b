"""What the kernels that Numba compiles have in common: threads, forks, strides, and numbers that are not finite."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from ssmvision.kernels import registry
from ssmvision.kernels.causal_conv import causal_conv
from ssmvision.kernels.causal_conv import numba as conv_numba
from ssmvision.kernels.causal_conv import reference as conv_reference
from ssmvision.kernels.cpu import threads as cpu_threads
from ssmvision.kernels.cpu.team import team
from ssmvision.kernels.cpu.threads import Loop, openmp, share_out
from ssmvision.kernels.cpu.vectors import LANES
from ssmvision.kernels.selective_scan import selective_scan_nd

BOTH = ("forward", "backward")


def inputs(channels: int = 40, length: int = 70) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (2, length, channels), "delta": (2, 2, length, channels), "A": (2, channels, 3)}
    shapes |= {"B": (2, 2, length, 3), "C": (2, 2, length, 3)}
    tensors = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
    return tensors | {"A": -tensors["A"].abs()}


def scan(tensors: dict[str, Tensor], backend: str = "numba") -> tuple[Tensor, ...]:
    """Result and gradients."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    out = selective_scan_nd(**leaves, delta_softplus=True, routes=BOTH, backend=backend)
    assert isinstance(out, Tensor)
    return (out.detach(), *torch.autograd.grad(out.sin().sum(), list(leaves.values())))


def test_is_picked_on_a_cpu_for_all_but_float64() -> None:
    for op in ("selective_scan", "causal_conv"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            assert registry.choose(op, registry.Request(dtype=dtype)).name == "numba"
        assert "float64" in str(registry.explain(op, registry.Request(dtype=torch.float64))["numba"])
        assert "cuda:0" in str(registry.explain(op, registry.Request("cuda:0"))["numba"])


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small work is shared out, too, and PyTorch's number of threads put back."""
    monkeypatch.setattr(cpu_threads, "WORTH_SHARING", 0)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("library", ["OpenMP", "none"])
@pytest.mark.usefixtures("threads")
def test_results_do_not_depend_on_the_number_of_threads(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "none":
        monkeypatch.setattr(cpu_threads, "openmp", lambda: None)
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(scan(inputs()))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.skipif(openmp() is None, reason="PyTorch uses another OpenMP")
@pytest.mark.usefixtures("threads")
def test_a_loop_that_fails_on_a_thread_is_not_taken_for_done() -> None:
    torch.set_num_threads(2)
    loop = Loop(fails, fails_team)
    seen = np.zeros(8, np.int64)
    share_out(loop, 8, 1, seen, 8)
    assert seen.tolist() == [1] * 8
    with pytest.raises(MemoryError, match="scratch"):
        share_out(loop, 8, 1, seen, 5)
    assert seen.tolist() == [2] * 5 + [1] * 3


@njit(nogil=True)
def fails(first: int, last: int, seen: Any, bad: int) -> None:
    for task in range(first, last):
        if task >= bad:
            raise MemoryError
        seen[task] += 1


@njit(nogil=True)
def fails_team(threads: int, parts: int, tasks: int, *arguments: Any) -> int:
    failed: int = team(fails, threads, parts, tasks, arguments)
    return failed


@pytest.mark.usefixtures("threads")
def test_several_threads_may_scan_at_once() -> None:
    expected = scan(inputs())
    torch.set_num_threads(2)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: scan(inputs()), range(12)):
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_may_scan() -> None:
    """A data loader's worker, for example; the parent's threads do not exist there."""
    code = """
import os, torch
from ssmvision.kernels.cpu import threads
from ssmvision.ops import selective_scan_nd
torch.set_num_threads(2)
threads.WORTH_SHARING = 0
t = torch.rand(1, 1, 9, 64)
run = lambda: selective_scan_nd(t, t, -torch.rand(1, 64, 2), t[..., :2], t[..., :2], routes="forward")
run()
child = os.fork()
run()
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else 0)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize("channels", [LANES, LANES + 3])
def test_strided_inputs_are_what_their_copies_are(channels: int) -> None:
    tensors = inputs(channels)
    rows = torch.randn(2, 70, 2 * channels)
    views = tensors | {
        "x": rows[..., channels:],
        "delta": tensors["delta"].transpose(0, 1).contiguous().transpose(0, 1),
    }
    views["B"], views["C"] = torch.randn(2, 2, 70, 8).split([5, 3], -1)[1], tensors["C"][:, :1].expand(-1, 2, -1, -1)
    copies = {name: t.clone(memory_format=torch.contiguous_format) for name, t in views.items()}
    assert all(torch.equal(a, b) for a, b in zip(scan(views), scan(copies), strict=True))


def test_nan_and_infinity_are_not_hidden() -> None:
    tensors = inputs()
    for name, value in (("A", float("nan")), ("delta", float("nan")), ("x", float("inf")), ("B", float("nan"))):
        spoilt = tensors[name].clone()
        spoilt.view(-1)[0] = value
        assert not scan(tensors | {name: spoilt})[0].isfinite().all(), name
    growing = scan(tensors | {"A": tensors["A"] + 1e4})[0]
    assert not growing.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16), (2, 1, 3), (2, 70, 20)], ids=str)
def test_convolution_is_the_reference(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    x, dout = (torch.randn(*s, generator=g).to(dtype) for s in (shape, (shape[0], 2, *shape[1:])))
    weight, bias = torch.randn(2, shape[2], 4, generator=g), torch.randn(2, shape[2], generator=g)
    ours = (
        conv_numba.forward(x, weight, bias, BOTH, True),
        *conv_numba.backward(x, weight, bias, BOTH, True, dout),
    )
    wide = (x.double(), weight.double(), bias.double(), BOTH, True)
    true = (conv_reference.forward(*wide), *conv_reference.backward(*wide, dout.double()))
    for got, want in zip(ours, true, strict=True):
        assert got is not None
        assert want is not None
        tolerance = 3e-6 if got.dtype is torch.float32 else 2**-8
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_convolution_reads_a_slice_in_place() -> None:
    rows = torch.randn(2, 9, 48)
    weight, bias = torch.randn(2, 16, 3), torch.randn(2, 16)
    got = causal_conv(rows[..., 16:32], weight, bias, BOTH)
    assert torch.equal(got, causal_conv(rows[..., 16:32].contiguous(), weight, bias, BOTH))
