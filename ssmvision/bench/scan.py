"""`ssmvision bench scan`: our selective scan beside the sequential reference loop, forward and with its backward."""

from __future__ import annotations

import json
import multiprocessing
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ssmvision.bench.config import BenchScanConfig
from ssmvision.errors import UserError
from ssmvision.kernels import registry
from ssmvision.kernels.selective_scan import selective_scan_nd
from ssmvision.kernels.selective_scan.args import ScanArgs
from ssmvision.kernels.selective_scan.reference import selective_scan_nd_reference

__all__ = ["SHAPES", "Case", "Row", "run"]


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

    On a CPU the peak is that of a whole fresh process, PyTorch included; on a GPU what PyTorch allocated.

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


def run(config: BenchScanConfig) -> list[Row]:
    """Time every chosen shape and print the table.

    Raises:
        UserError: CUDA is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; run `ssmvision doctor` or use --device cpu")
    if config.threads:
        torch.set_num_threads(config.threads)
    rows = []
    for name, case in SHAPES.items():
        if config.shapes in ("all", name):
            rows.append(_measure(name, case, config))
            if not config.json:
                print(_sentence(rows[-1]), flush=True)
    if config.json:
        print(json.dumps({"machine": _machine(config), "rows": [asdict(row) for row in rows]}, indent=2))
    else:
        print(_machine(config))
    return rows


def _machine(config: BenchScanConfig) -> str:
    name = (
        torch.cuda.get_device_name() if config.device == "cuda" else f"{_cpu_name()}, {torch.get_num_threads()} threads"
    )
    return f"{name}; {config.dtype}; torch {torch.__version__}; Python {platform.python_version()}"


def _cpu_name() -> str:
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def _inputs(case: Case, config: BenchScanConfig) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    k = len(case.routes)

    def rand(*shape: int) -> Tensor:
        t = torch.randn(*shape, generator=g).to(config.device, getattr(torch, config.dtype))
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
        "A": (-decay).clone().to(config.device).requires_grad_(),
        "D": torch.ones(k, case.channels, device=config.device, requires_grad=True),
        "delta_bias": torch.full((k, case.channels), -3.0, device=config.device, requires_grad=True),
    }


def _ours(t: dict[str, Tensor], case: Case, backend: str) -> Tensor:
    out = selective_scan_nd(**t, delta_softplus=True, routes=case.routes, backend=backend)  # type: ignore[arg-type]
    assert isinstance(out, Tensor)
    return out


def _loop(t: dict[str, Tensor], case: Case) -> Tensor:
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
        if config.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        if config.device == "cuda":
            torch.cuda.synchronize()
        if i:
            best = min(best, time.perf_counter() - start)
    return best * 1e3


def _measure(name: str, case: Case, config: BenchScanConfig) -> Row:
    t = _inputs(case, config)

    def forward(f: Callable[[], Tensor]) -> float:
        with torch.no_grad():
            return _time_ms(f, config)

    def training(f: Callable[[], Tensor]) -> float:
        return _time_ms(lambda: torch.autograd.grad(f().sum(), list(t.values())), config)

    def ours() -> Tensor:
        return _ours(t, case, config.backend)

    def loop() -> Tensor:
        return _loop(t, case)

    error = None
    if case.loop:
        with torch.no_grad():
            expected = loop()
            error = float((ours() - expected).abs().max() / expected.abs().max())
    request = registry.Request(config.device, getattr(torch, config.dtype))
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
        _training_peak_gib(name, config),
    )


def _training_peak_gib(name: str, config: BenchScanConfig) -> float:
    """Peak memory of one training step: allocated on the device, or resident in a fresh process, PyTorch included."""
    if config.device == "cuda":
        t = _inputs(SHAPES[name], config)
        torch.cuda.reset_peak_memory_stats()
        torch.autograd.grad(_ours(t, SHAPES[name], config.backend).sum(), list(t.values()))
        return torch.cuda.max_memory_allocated() / 2**30
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_this_process, (name, config))


def _peak_of_this_process(name: str, config: BenchScanConfig) -> float:
    t = _inputs(SHAPES[name], config)
    torch.autograd.grad(_ours(t, SHAPES[name], config.backend).sum(), list(t.values()))
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
