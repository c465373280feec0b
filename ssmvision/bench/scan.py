"""`ssmvision bench scan` on a CPU: our selective scan beside the sequential loop, forward and with its backward."""

from __future__ import annotations

import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ssmvision.bench.config import BenchScanConfig
from ssmvision.bench.table import chosen, publish
from ssmvision.kernels import registry
from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.selective_scan.args import ScanArgs
from ssmvision.kernels.selective_scan.reference import selective_scan_nd_reference

if TYPE_CHECKING:
    from ssmvision.bench.gpu import GpuRow

__all__ = ["SHAPES", "Case", "Row", "cpu_name", "run", "run_cpu", "scan_inputs", "scan_loop", "scan_ours"]


@dataclass(frozen=True)
class Case:
    """A scan to time: batch, grid, channels E and states N, along `routes`.

    Attributes:
        loop: whether the sequential loop runs beside it; at a volume's length it would take minutes.
    """

    batch: int
    grid: tuple[int, ...]
    channels: int
    states: int
    routes: tuple[str, ...]
    loop: bool = True


SHAPES: dict[str, Case] = {
    "sequence": Case(1, (3136,), 384, 16, ("forward",)),
    "vim": Case(1, (197,), 384, 16, ("forward", "backward")),
    "volume": Case(1, (64, 64, 64), 32, 16, ("forward", "backward"), loop=False),
}


@dataclass(frozen=True)
class Row:
    """One shape's figures: milliseconds (ours and the loop's), and the peak memory of ours in training, in GiB.

    The peak is that of a whole fresh process, PyTorch included.

    `error` is the largest difference from the loop, relative to its largest output; None where the loop did not run.
    """

    shape: str
    size: str
    backend: str
    forward_ms: float
    training_ms: float
    loop_forward_ms: float | None
    loop_training_ms: float | None
    error: float | None
    training_peak_gib: float


def run(config: BenchScanConfig) -> Sequence[Row | GpuRow]:
    """Time every chosen shape on the chosen device and print the table.

    Raises:
        UserError: CUDA is asked for and there is none, or a shape that does not exist.
    """
    if config.device == "cuda":
        from ssmvision.bench.gpu import run_gpu

        return run_gpu(config)
    return run_cpu(replace(config, dtype="float32") if config.dtype == "auto" else config)


def run_cpu(config: BenchScanConfig) -> list[Row]:
    """Time every chosen shape on the CPU.

    Raises:
        UserError: `config.shapes` names a shape that does not exist.
    """
    names = chosen(config.shapes, SHAPES)
    if config.threads:
        torch.set_num_threads(config.threads)
    rows = []
    for name in names:
        rows.append(_measure(name, SHAPES[name], config))
        if not config.json:
            print(_sentence(rows[-1]), flush=True)
    publish(config, _machine(config), rows, _machine(config))  # each row's sentence was printed when it was there
    return rows


def _machine(config: BenchScanConfig) -> str:
    versions = f"torch {torch.__version__}; Python {platform.python_version()}"
    return f"{cpu_name()}, {torch.get_num_threads()} threads; {config.dtype}; {versions}"


def cpu_name() -> str:
    """The processor, as the system calls it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def scan_inputs(case: Case, dtype: str) -> dict[str, Tensor]:
    """Random arguments of `selective_scan_nd` for gated inputs of their own along every route.

    Args:
        case: the shape.
        dtype: of what has positions, by its name in torch; A, D and delta_bias are float32.
    """
    g = torch.Generator().manual_seed(0)
    k = len(case.routes)

    def rand(*shape: int) -> Tensor:
        t = torch.randn(*shape, generator=g).to(getattr(torch, dtype))
        return t.requires_grad_()

    tensors = {
        "x": rand(case.batch, k, *case.grid, case.channels),
        "delta": rand(case.batch, k, *case.grid, case.channels),
        "B": rand(case.batch, k, *case.grid, case.states),
        "C": rand(case.batch, k, *case.grid, case.states),
        "z": rand(case.batch, *case.grid, case.channels),
    }
    decay = torch.arange(1, case.states + 1, dtype=torch.float32).expand(k, case.channels, -1)
    return tensors | {
        "A": (-decay).clone().requires_grad_(),
        "D": torch.ones(k, case.channels, requires_grad=True),
        "delta_bias": torch.full((k, case.channels), -3.0, requires_grad=True),
    }


def scan_ours(t: dict[str, Tensor], case: Case, backend: str) -> Tensor:
    """Our scan of `scan_inputs`."""
    out = selective_scan_nd(**t, delta_softplus=True, routes=case.routes, backend=backend)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    return out


def scan_loop(t: dict[str, Tensor], case: Case) -> Tensor:
    """The definition, differentiated by autograd."""
    flat = {n: v.flatten(2, -2) for n, v in t.items() if n in ("x", "delta", "B", "C")}
    args = ScanArgs(
        **flat, A=t["A"], D=t["D"], z=t["z"].flatten(1, -2), delta_bias=t["delta_bias"], delta_softplus=True,
        routes=case.routes, grid=case.grid, merge="sum",
    )  # fmt: skip
    out: Tensor = selective_scan_nd_reference(args)[0].unflatten(1, case.grid)
    return out


def _time_ms(f: Callable[[], object], config: BenchScanConfig) -> float:
    """Fastest of the repeats, after one warm-up."""
    best = float("inf")
    for i in range(config.repeats + 1):
        start = time.perf_counter()
        f()
        if i:
            best = min(best, time.perf_counter() - start)
    return best * 1e3


def _measure(name: str, case: Case, config: BenchScanConfig) -> Row:
    t = scan_inputs(case, config.dtype)

    def forward(f: Callable[[], Tensor]) -> float:
        with torch.no_grad():
            return _time_ms(f, config)

    def training(f: Callable[[], Tensor]) -> float:
        return _time_ms(lambda: torch.autograd.grad(f().sum(), list(t.values())), config)

    def ours() -> Tensor:
        return scan_ours(t, case, config.backend)

    def loop() -> Tensor:
        return scan_loop(t, case)

    error = None
    if case.loop:
        with torch.no_grad():
            expected = loop()
            error = float((ours() - expected).abs().max() / expected.abs().max())
    request = registry.Request("cpu", getattr(torch, config.dtype))
    size = f"B{case.batch} {'x'.join(map(str, case.grid))} E{case.channels} N{case.states} K{len(case.routes)}"
    return Row(
        name,
        size,
        registry.choose("selective_scan", request, config.backend).name,
        forward(ours),
        training(ours),
        forward(loop) if case.loop else None,
        training(loop) if case.loop else None,
        error,
        _training_peak_gib(case, config),
    )


def _training_peak_gib(case: Case, config: BenchScanConfig) -> float:
    """Peak resident memory of a fresh process that makes one training step, PyTorch included."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (case, config))


def _peak_of_this_process(case: Case, config: BenchScanConfig) -> float:
    t = scan_inputs(case, config.dtype)
    torch.autograd.grad(scan_ours(t, case, config.backend).sum(), list(t.values()))
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def _sentence(row: Row) -> str:
    text = f"{row.shape} ({row.size}), {row.backend}: forward {row.forward_ms:.1f} ms"
    text += f", with backward {row.training_ms:.1f} ms"
    if row.loop_forward_ms is not None and row.loop_training_ms is not None:
        text += (
            f"; sequential loop {row.loop_forward_ms:.1f} and {row.loop_training_ms:.1f} ms"
            f" ({row.loop_forward_ms / row.forward_ms:.1f}x and {row.loop_training_ms / row.training_ms:.1f}x)"
            f", relative error {row.error:.1e}"
        )
    return f"{text}; a training process peaks at {row.training_peak_gib:.2f} GiB"
