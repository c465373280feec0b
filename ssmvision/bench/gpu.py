"""`ssmvision bench scan --device cuda`: our scan beside its floor, its peers and a float64 computation."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ssmvision.bench.config import BenchScanConfig
from ssmvision.bench.contestants import Contestant, Inputs, composed, make_inputs, ours
from ssmvision.bench.floors import Rates, rates_of, scan_floor
from ssmvision.bench.peers import find_peer
from ssmvision.bench.shapes import SHAPES, Shape
from ssmvision.bench.table import chosen, markdown, publish
from ssmvision.bench.timing import capture, host_us, in_turns_us, peak_mib, side_stream
from ssmvision.errors import UserError

__all__ = ["GpuRow", "Measured", "device_rates", "machine", "measure", "run_gpu", "table"]

PASSES = ("forward", "forward + backward")
# The float64 computation takes as many samples as hold this many states in all.
REFERENCE_STATES = 1 << 29
# Inputs without a batch axis; their gradients sum over it.
WEIGHTS = frozenset({"A", "D", "delta_bias", "x_proj", "dt_weight"})


@dataclass(frozen=True)
class Measured:
    """One implementation's figures for one pass.

    Attributes:
        us: microseconds on the GPU: median over replays of a captured graph, from a cold L2 cache.
        host_us: microseconds that an eager call keeps the host.
        peak_mib: most memory allocated at once, inputs and results included.
        errors: |found - exact| / |exact|, Euclidean norms, of the result ("out") and, with the backward, of every
            gradient; of a peer's result alone.
    """

    us: float
    host_us: float
    peak_mib: float
    errors: dict[str, float]

    @property
    def error(self) -> float | None:
        """The largest of them; None where there is none."""
        return max(self.errors.values(), default=None)


@dataclass(frozen=True)
class GpuRow:
    """One shape and pass.

    Attributes:
        shape: its name.
        size: batch, grid, channels, states, routes.
        dtype: of the inputs.
        step: "forward" or "forward + backward".
        ours: our figures.
        floor_us: the least time that the device needs, see `ssmvision.bench.floors`.
        peer_name: what ran beside it.
        peer: its figures, or None.
        peer_missing: why there are none.
    """

    shape: str
    size: str
    dtype: str
    step: str
    ours: Measured
    floor_us: float
    peer_name: str
    peer: Measured | None
    peer_missing: str = ""


def run_gpu(config: BenchScanConfig) -> list[GpuRow]:
    """Time every chosen shape, print the table and write it where `config.out` says.

    Raises:
        UserError: there is no CUDA device, or `config.shapes` names a shape that does not exist.
    """
    names = chosen(config.shapes, SHAPES)
    if not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; run `ssmvision doctor` or use --device cpu")
    dtype = "bfloat16" if config.dtype == "auto" else config.dtype
    rows: list[GpuRow] = []
    for name in names:
        print(f"{name}: {SHAPES[name].about} ({SHAPES[name].size}) ...", file=sys.stderr, flush=True)
        rows += measure(name, dtype, config.backend)
    publish(config, machine(dtype), rows, f"{machine(dtype)}\n\n{table(rows)}")
    return rows


def device_rates() -> Rates:
    """Rates of the current CUDA device."""
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    # The clock is given in kHz; memory moves data on both edges of its clock.
    memory = 2 * device.memory_clock_rate * 1e3 * device.memory_bus_width / 8
    return rates_of(device.name, device.multi_processor_count, device.clock_rate * 1e3, memory)


def machine(dtype: str) -> str:
    """Device, versions, and where the floors come from."""
    rates = device_rates()
    versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    return f"{torch.cuda.get_device_name()}; {dtype}; {versions}; floors: {rates.source}"


def measure(name: str, dtype: str, backend: str = "auto") -> list[GpuRow]:
    """Both passes of one shape, ours and its peer in turns."""
    shape = SHAPES[name]
    floors = scan_floor(shape.work(getattr(torch, dtype).itemsize), device_rates())
    floor_us = (floors[0].us, floors[0].us + floors[1].us)
    find = find_peer(shape.peer)
    missing = find if isinstance(find, str) else ""
    with side_stream():
        inputs = make_inputs(shape, getattr(torch, dtype), "cuda")
        runs = [_Run(ours(shape, inputs, backend))]
        if not isinstance(find, str):
            try:
                runs.append(_Run(find(shape, inputs)))
            except torch.OutOfMemoryError:
                missing = "out of memory"
        errors = _errors(shape, inputs, runs)
        measured = [_turns(runs, step, errors[step]) for step in range(2)]
    del runs, inputs
    gc.collect()
    torch.cuda.empty_cache()
    return [
        GpuRow(
            name,
            shape.size,
            dtype,
            PASSES[step],
            measured[step][0],
            floor_us[step],
            shape.peer,
            measured[step][1] if len(measured[step]) > 1 else None,
            missing,
        )
        for step in range(2)
    ]


class _Run:
    """A contestant with its results, memory and host times taken, and its two passes captured."""

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        held = sum(t.numel() * t.element_size() for t in (*contestant.leaves.values(), contestant.dout))
        base = torch.cuda.memory_allocated() - held
        with torch.no_grad():
            self.host, self.peak = [host_us(contestant.forward)], [peak_mib(contestant.forward, base)]
        self.host.append(host_us(contestant.training))
        self.peak.append(peak_mib(contestant.training, base))
        with torch.no_grad():
            self.out = contestant.to_map(contestant.forward())
            self.graphs = [capture(contestant.forward)]
        self.gradients = dict(zip(contestant.leaves, contestant.training(), strict=True))
        self.graphs.append(capture(contestant.training))


def _turns(runs: Sequence[_Run], step: int, errors: Sequence[dict[str, float]]) -> list[Measured]:
    times = in_turns_us([run.graphs[step].replay for run in runs])
    return [
        Measured(us, run.host[step], run.peak[step], error) for us, run, error in zip(times, runs, errors, strict=True)
    ]


def _errors(shape: Shape, inputs: Inputs, runs: Sequence[_Run]) -> list[list[dict[str, float]]]:
    """Per pass and run, the errors over as many samples as `REFERENCE_STATES` allows.

    Gradients of weights are compared where these samples are the whole batch; a peer's gradients are not, its layout
    being another.
    """
    states = prod(shape.grid) * shape.channels * shape.states * len(shape.routes)
    samples = min(max(REFERENCE_STATES // states, 1), shape.batch)
    part = {name: (t if name in WEIGHTS else t[:samples]).double() for name, t in inputs.items()}
    exact = composed(shape, part, "chunked")
    with torch.no_grad():
        out = exact.forward()
    forward = [{"out": _error(run.out[:samples], out)} for run in runs]
    training = dict(forward[0])
    for name, expected in zip(exact.leaves, exact.training(), strict=True):
        found = runs[0].gradients[name]
        if name not in WEIGHTS:
            training[name] = _error(found[:samples], expected)
        elif samples == shape.batch:
            training[name] = _error(found, expected)
    return [forward, [training, *({} for _ in runs[1:])]]


def _error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def table(rows: Sequence[GpuRow]) -> str:
    """Markdown; times in microseconds, memory in MiB."""
    return markdown([_cells(row) for row in rows])


def _cells(row: GpuRow) -> dict[str, str]:
    peer = row.peer
    return {
        "shape": f"({row.shape}) {row.size}",
        "pass": row.step,
        "ours us": f"{row.ours.us:.0f}",
        "host us": f"{row.ours.host_us:.0f}",
        "floor us": f"{row.floor_us:.0f}",
        "ours / floor": f"{row.ours.us / row.floor_us:.2f}",
        "error": _figure(row.ours.error),
        "peak MiB": f"{row.ours.peak_mib:.0f}",
        "peer": row.peer_name if peer else f"{row.peer_name}: {row.peer_missing}",
        "peer us": f"{peer.us:.0f}" if peer else "",
        "peer / ours": f"{peer.us / row.ours.us:.2f}" if peer else "",
        "peer error": _figure(peer.error) if peer else "",
        "peer MiB": f"{peer.peak_mib:.0f}" if peer else "",
    }


def _figure(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"
