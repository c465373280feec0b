"""The measurements of `ssmvision bench s4nd` on a CPU."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

import torch

from ssmvision.bench.contestants import Contestant
from ssmvision.bench.s4nd import MAPS_MOVED, PASSES, Exact, Figures, Row
from ssmvision.bench.s4nd_config import BenchS4NDConfig
from ssmvision.bench.s4nd_shapes import DEPTHWISE, SHAPES, Map, contestants, make_inputs
from ssmvision.kernels import registry
from ssmvision.kernels.s4nd.args import ConvRequest
from ssmvision.kernels.s4nd.op import OP

__all__ = ["allocated_mib", "chosen_backend", "in_turns", "measure"]

Times = list[float]


def measure(name: str, dtype: str, config: BenchS4NDConfig) -> list[Row]:
    """Both passes of one shape, all contestants in turns."""
    shape = SHAPES[name]
    inputs = make_inputs(shape, getattr(torch, dtype), "cpu")
    backend = chosen_backend(shape, dtype, "cpu", config)
    makers = contestants(inputs, config.backend, config.precision, matmul=backend != "toeplitz")
    runs = {key: make() for key, make in makers.items()}
    exact = Exact(inputs)
    errors = {key: exact.errors_of(run) for key, run in runs.items() if key != DEPTHWISE}
    copy = torch.empty_like(inputs["u"])
    works: list[Callable[[], object]] = [lambda: copy.copy_(inputs["u"])]
    rows = []
    for step, title in enumerate(PASSES):
        passes = [_forward(run) if step == 0 else run.training for run in runs.values()]
        peaks = [allocated_mib(work) for work in passes]
        copied, *times = in_turns(works + passes, config.repeats)
        figures: dict[str, Figures | str] = {
            key: Figures(min(t), statistics.median(t), peak, errors[key][step] if key in errors else None)
            for key, t, peak in zip(runs, times, peaks, strict=True)
        }
        floor = min(copied) * MAPS_MOVED[step] / 2
        rows.append(Row(name, shape.size, dtype, title, backend, floor, figures))
    return rows


def chosen_backend(shape: Map, dtype: str, device: str, config: BenchS4NDConfig) -> str:
    """Which backend ours runs with."""
    wish, forced = config.backend, config.backend not in ("auto", "fft")
    known = {"systems": shape.channels, "precision": config.precision, "forced": forced}
    request = ConvRequest(device, getattr(torch, dtype), shape.grid, **known)  # type: ignore[arg-type]
    return registry.choose(OP, request, wish).name


def _forward(run: Contestant) -> Callable[[], object]:
    def forward() -> object:
        with torch.no_grad():
            return run.forward()

    return forward


def in_turns(works: Sequence[Callable[[], object]], repeats: int) -> list[Times]:
    """Microseconds of every turn of each work, after one warm-up; the works take turns and so see the same load."""
    times: list[Times] = [[] for _ in works]
    for turn in range(repeats + 1):
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if turn:
                taken.append((time.perf_counter() - start) * 1e6)
    return times


def allocated_mib(work: Callable[[], object]) -> float:
    """The most that PyTorch's allocator holds at once for a call, its result included, by its own record."""
    work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Profiler clears events.*")
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                work()
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return float(max(accumulate((size for _, size in changes), initial=0))) / 2**20
