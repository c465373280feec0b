"""The measurements of `ssmvision bench s4nd` on a GPU: replays of captured graphs, all contestants in turns."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from ssmvision.bench.contestants import Contestant
from ssmvision.bench.gpu import device_rates
from ssmvision.bench.s4nd import MAPS_MOVED, PASSES, Figures, Row, errors_of
from ssmvision.bench.s4nd_config import BenchS4NDConfig
from ssmvision.bench.s4nd_cpu import chosen_backend
from ssmvision.bench.s4nd_shapes import DEPTHWISE, SHAPES, Map, contestants, make_inputs
from ssmvision.bench.timing import capture, in_turns_us, peak_mib, side_stream

__all__ = ["floor_us", "measure"]


class _Run:
    """A contestant with its errors and memory taken, and its two passes captured."""

    def __init__(self, name: str, make: Callable[[], Contestant], inputs: dict[str, torch.Tensor]) -> None:
        contestant = make()
        held = sum(t.numel() * t.element_size() for t in (*contestant.leaves.values(), contestant.dout))
        base = torch.cuda.memory_allocated() - held
        with torch.no_grad():
            self.peaks = [peak_mib(contestant.forward, base)]
        self.peaks.append(peak_mib(contestant.training, base))
        self.errors = [None, None] if name == DEPTHWISE else errors_of(inputs, contestant)
        with torch.no_grad():
            self.graphs = [capture(contestant.forward)]
        self.graphs.append(capture(contestant.training))


def measure(name: str, dtype: str, config: BenchS4NDConfig) -> list[Row]:
    """Both passes of one shape."""
    shape = SHAPES[name]
    runs: dict[str, _Run] = {}
    missing: dict[str, str] = {}
    with side_stream():
        inputs = make_inputs(shape, getattr(torch, dtype), "cuda")
        for key, make in contestants(inputs, config.backend, config.precision).items():
            try:
                runs[key] = _Run(key, make, inputs)
            except torch.OutOfMemoryError:
                missing[key] = "out of memory"
            gc.collect()
            torch.cuda.empty_cache()
        times = [in_turns_us([run.graphs[step].replay for run in runs.values()]) for step in range(2)]
    rows = []
    for step, title in enumerate(PASSES):
        taken = dict(zip(runs, times[step], strict=True))
        figures: dict[str, Figures | str] = {
            key: Figures(taken[key], None, run.peaks[step], run.errors[step]) for key, run in runs.items()
        }
        backend = chosen_backend(shape, dtype, "cuda", config.backend)
        rows.append(Row(name, shape.size, dtype, title, backend, floor_us(shape, dtype, step), {**figures, **missing}))
    del runs, inputs
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def floor_us(shape: Map, dtype: str, step: int) -> float:
    """Time to move a pass' maps at the device's bandwidth."""
    moved = MAPS_MOVED[step] * shape.values * int(getattr(torch, dtype).itemsize)
    return moved / device_rates().memory * 1e6
