"""`ssmvision bench s4nd`: the global convolution beside the FFT, a depthwise convolution and the floor."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmvision.bench.contestants import Contestant, Inputs
from ssmvision.bench.s4nd_config import BenchS4NDConfig
from ssmvision.bench.s4nd_shapes import DEPTHWISE, FFT, MATMUL, OURS, SHAPES, global_conv, part_of
from ssmvision.bench.scan import cpu_name
from ssmvision.bench.table import chosen, markdown, publish
from ssmvision.errors import UserError

__all__ = ["MAPS_MOVED", "PASSES", "Exact", "Figures", "Row", "run", "table"]

PASSES = ("forward", "forward + backward")
# Maps read and written by each: u in, y out; then u and y's gradient in, u's gradient out.
MAPS_MOVED = (2, 5)
NAMES = (OURS, MATMUL, FFT, DEPTHWISE)
# The float64 FFT takes as many features as hold this many padded values.
REFERENCE_VALUES = {"cpu": 1 << 22, "cuda": 1 << 28}


@dataclass(frozen=True)
class Figures:
    """One contestant's figures for one pass.

    Attributes:
        us: microseconds. On a CPU the fastest turn, which other programs disturb least; on a GPU the median over
            replays of a captured graph, from a cold L2 cache.
        median_us: of the turns on a CPU; None on a GPU.
        peak_mib: most memory that PyTorch allocates at once, results included; on a GPU inputs too. A library's own
            working memory is not in it on a CPU.
        error: |found - exact| / |exact| of the result or, with the backward, the largest of it and all gradients;
            Euclidean norms, exact by FFT in float64. None for the depthwise convolution, which computes another thing.
    """

    us: float
    median_us: float | None
    peak_mib: float
    error: float | None


@dataclass(frozen=True)
class Row:
    """One shape and pass.

    Attributes:
        shape: its name.
        size: batch, features, grid.
        dtype: of the maps.
        step: "forward" or "forward + backward".
        backend: that ours ran with.
        floor_us: reading and writing the maps once: on a CPU by the time of a copy, on a GPU by its bandwidth.
        figures: of each contestant; of one that did not run, why.
    """

    shape: str
    size: str
    dtype: str
    step: str
    backend: str
    floor_us: float
    figures: dict[str, Figures | str]


def run(config: BenchS4NDConfig) -> list[Row]:
    """Time every chosen shape, print the table and write it where `config.out` says.

    Raises:
        UserError: CUDA is asked for and there is none, or a shape that does not exist.
    """
    names = [name for name, shape in SHAPES.items() if shape.device == config.device]
    if config.shapes != "auto":
        names = chosen(config.shapes, SHAPES)
    dtype = {"cpu": "float32", "cuda": "bfloat16"}[config.device] if config.dtype == "auto" else config.dtype
    if config.device == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device cuda: PyTorch sees no CUDA device here; run `ssmvision doctor` or use --device cpu"
            )
        from ssmvision.bench.gpu import machine
        from ssmvision.bench.s4nd_gpu import measure

        where = machine(dtype)
    else:
        from ssmvision.bench.s4nd_cpu import measure

        if config.threads:
            torch.set_num_threads(config.threads)
        versions = f"torch {torch.__version__}; Python {platform.python_version()}"
        where = f"{cpu_name()}, {torch.get_num_threads()} threads; {dtype}; {versions}"
    rows = [row for name in names for row in measure(name, dtype, config)]
    publish(config, where, rows, f"{where}\n\n{table(rows)}")
    return rows


class Exact:
    """A global convolution's result and gradients by FFT in float64, of as many features as memory takes.

    Args:
        inputs: of the convolution.
    """

    def __init__(self, inputs: Inputs) -> None:
        maps = inputs["u"]
        padded = maps[:, :1].numel() << (maps.dim() - 2)
        self._features = min(max(REFERENCE_VALUES[maps.device.type] // padded, 1), maps.shape[1])
        part = {name: t.double() for name, t in part_of(inputs, self._features).items()}
        exact = global_conv("exact", part, "fft")
        self._values = {"out": exact.forward().detach(), **dict(zip(exact.leaves, exact.training(), strict=True))}

    def errors_of(self, run: Contestant) -> list[float]:
        """Error of the result, and the largest of its and the gradients' ones."""
        found = {"out": run.forward(), **dict(zip(run.leaves, run.training(), strict=True))}
        errors = {name: _error(_features(name, found[name], self._features), t) for name, t in self._values.items()}
        return [errors["out"], max(errors.values())]


def _features(name: str, t: Tensor, features: int) -> Tensor:
    if name == "out":
        return t[:, :, :features]
    return t[:, :features] if name == "u" else t[:features]


def _error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).norm() / expected.norm()).detach())


def table(rows: Sequence[Row]) -> str:
    """Markdown; times in microseconds, memory in MiB."""
    return markdown([_cells(row) for row in rows])


def _cells(row: Row) -> dict[str, str]:
    ours = row.figures[OURS]
    cells = {"shape": f"({row.shape}) {row.size}", "pass": row.step, "engine": row.backend}
    cells["floor us"] = f"{row.floor_us:.0f}"
    for name in NAMES:
        cells[f"{name} us"] = _time(row.figures.get(name, ""))
    for name in NAMES[1:]:
        figures = row.figures.get(name)
        both = isinstance(figures, Figures) and isinstance(ours, Figures)
        cells[f"{name} / ours"] = f"{figures.us / ours.us:.1f}" if both else ""  # type: ignore[union-attr]
    for name in (OURS, MATMUL, FFT):
        cells[f"{name} error"] = _optional(row.figures, name, "error", ".0e")
    for name in NAMES:
        cells[f"{name} MiB"] = _optional(row.figures, name, "peak_mib", ".0f")
    return cells


def _time(figures: Figures | str) -> str:
    if isinstance(figures, str):
        return figures
    median = "" if figures.median_us is None else f" (median {figures.median_us:.0f})"
    return f"{figures.us:.0f}{median}"


def _optional(figures: Mapping[str, Figures | str], name: str, field: str, form: str) -> str:
    value = getattr(figures.get(name), field, None)
    return "" if value is None else format(value, form)
