"""The measurements of `ssmvision bench s4nd` on a GPU: replays of captured graphs, all contestants in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping

import torch

from ssmvision.bench.contestants import Contestant
from ssmvision.bench.gpu import device_rates
from ssmvision.bench.s4nd import MAPS_MOVED, PASSES, Exact, Figures, Row
from ssmvision.bench.s4nd_config import BenchS4NDConfig
from ssmvision.bench.s4nd_cpu import chosen_backend
from ssmvision.bench.s4nd_shapes import DEPTHWISE, SHAPES, Map, contestants, make_inputs
from ssmvision.bench.timing import capture, in_turns_us, peak_mib, side_stream

__all__ = ["floor_us", "measure"]

Work = Callable[[], object]
# Work that takes longer is timed by itself, in a few turns and without a graph: the turns would all be as many.
LONG_US = 50_000.0


class _Run:
    """A contestant with its errors and memory taken, and its two passes ready to be timed.

    A pass is a graph's replay, or, if it is long, the call itself, beside which the host's share does not count.
    """

    def __init__(self, name: str, make: Callable[[], Contestant], exact: Exact) -> None:
        contestant = make()
        held = sum(t.numel() * t.element_size() for t in (*contestant.leaves.values(), contestant.dout))
        base = torch.cuda.memory_allocated() - held
        passes: tuple[Work, Work] = (lambda: _no_grad(contestant.forward), contestant.training)
        self.peaks = [peak_mib(work, base) for work in passes]
        self.errors = [None, None] if name == DEPTHWISE else exact.errors_of(contestant)
        self.long = [_once_us(work) > LONG_US for work in passes]
        self.passes: list[Work] = [
            work if long else capture(work).replay for work, long in zip(passes, self.long, strict=True)
        ]


def _no_grad(work: Work) -> object:
    with torch.no_grad():
        return work()


def _once_us(work: Work) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def measure(name: str, dtype: str, config: BenchS4NDConfig) -> list[Row]:
    """Both passes of one shape."""
    shape = SHAPES[name]
    backend = chosen_backend(shape, dtype, "cuda", config)
    runs: dict[str, _Run] = {}
    missing: dict[str, str] = {}
    with side_stream():
        inputs = make_inputs(shape, getattr(torch, dtype), "cuda")
        exact = Exact(inputs)
        makers = contestants(inputs, config.backend, config.precision, matmul=backend != "toeplitz")
        for key, make in makers.items():
            try:
                runs[key] = _Run(key, make, exact)
            except torch.OutOfMemoryError:
                missing[key] = "out of memory"
            except RuntimeError as error:  # such as what a graph cannot hold: the others are still measured
                missing[key] = f"failed: {str(error).splitlines()[0]}"
            gc.collect()
            torch.cuda.empty_cache()
        times = [_times_us(runs, step) for step in range(2)]
    rows = []
    for step, title in enumerate(PASSES):
        figures: dict[str, Figures | str] = {
            key: Figures(times[step][key], None, run.peaks[step], run.errors[step]) for key, run in runs.items()
        }
        rows.append(Row(name, shape.size, dtype, title, backend, floor_us(shape, dtype, step), {**figures, **missing}))
    del runs, inputs, exact
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def _times_us(runs: Mapping[str, _Run], step: int) -> dict[str, float]:
    """Of each contestant; the long ones for themselves."""
    short = [key for key, run in runs.items() if not run.long[step]]
    times = dict(zip(short, in_turns_us([runs[key].passes[step] for key in short]) if short else [], strict=True))
    for key, run in runs.items():
        if run.long[step]:
            times[key] = sorted(_once_us(run.passes[step]) for _ in range(3))[1]
    return times


def floor_us(shape: Map, dtype: str, step: int) -> float:
    """Time to move a pass' maps at the device's bandwidth."""
    moved = MAPS_MOVED[step] * shape.values * int(getattr(torch, dtype).itemsize)
    return moved / device_rates().memory * 1e6
