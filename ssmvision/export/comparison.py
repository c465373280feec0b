"""A written file against the model that it is of: differences, largest classes, size and times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

__all__ = ["ExportReport", "compare"]

Run = Callable[[tuple[Tensor, ...]], Tensor]

# Where PyTorch itself is further from float64, a model magnifies rounding so much that a comparison says nothing.
MOST = 1e-2


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with PyTorch.

    Args:
        path: the file; weights of 2 GB and more of an ONNX file lie beside it.
        megabytes: of all that was written, 10^6 bytes.
        nodes: operators of the graph, those within scans included once.
        seconds: that tracing, translating and writing took.
        inputs: batches compared: the example, a larger one where the batch is open, and the samples.
        error: greatest difference as a share of the greatest value of its batch.
        argmax_equal: share of positions (of images, for a classifier) where the greatest channel is the same.
        runtime_ms, eager_ms: one run of the example on the CPU by the file's runtime and by PyTorch, with PyTorch's
            number of threads, best of three.
        exact_error, eager_error: how far the file's result and PyTorch's own are from float64's, of the batches whose
            error is greater than the tolerance; None where there are none.
    """

    path: Path
    megabytes: float
    nodes: int
    seconds: float
    inputs: int
    error: float
    argmax_equal: float
    runtime_ms: float
    eager_ms: float
    exact_error: float | None = None
    eager_error: float | None = None


def compare(
    path: Path,
    nodes: int,
    seconds: float,
    run: Run,
    model: Run,
    batches: Sequence[tuple[Tensor, ...]],
    tolerance: float,
    exact: Run | None = None,
) -> ExportReport:
    """Runs both on all batches, and times them on the first.

    Args:
        path: the file, alone in its folder but for what belongs to it.
        nodes, seconds: see `ExportReport`.
        run: the file in its runtime.
        model: what it was made from.
        batches: inputs of `forward`.
        tolerance: greatest error that is allowed, or that needs no reason.
        exact: the model in float64, run on batches whose error is greater: there the file must be at least as near to
            it as PyTorch is, and PyTorch within 1e-2 of it. None: the tolerance holds.

    Raises:
        ValueError: an error is greater than what is allowed.
    """
    error, same, positions = 0.0, 0, 0
    exact_error: float | None = None
    eager_error: float | None = None
    for batch in batches:
        got, want = run(batch), model(batch)
        found = _error(got, want)
        if not found <= tolerance:
            told = f"differs from PyTorch by {found:.1e} where {tolerance:g} is allowed"
            if exact is None:
                raise ValueError(told)
            truth = _in_float64(exact, batch, told)
            ours, eager = _error(got, truth), _error(want, truth)
            if not ours <= eager <= MOST:
                raise ValueError(f"{told}; it is {ours:.1e} away from float64, PyTorch {eager:.1e}")
            exact_error, eager_error = max(exact_error or 0.0, ours), max(eager_error or 0.0, eager)
        error = max(error, found)
        agree = got.argmax(1) == want.argmax(1)
        same, positions = same + int(agree.sum()), positions + agree.numel()
    runtime_ms, eager_ms = (_best_ms(lambda f=f: f(batches[0])) for f in (run, model))  # type: ignore[misc]
    size = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
    equal = same / max(positions, 1)
    times = (runtime_ms, eager_ms)
    return ExportReport(path, size, nodes, seconds, len(batches), error, equal, *times, exact_error, eager_error)


def _error(got: Tensor, want: Tensor) -> float:
    found = float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))
    return math.inf if math.isnan(found) else found


def _in_float64(exact: Run, batch: tuple[Tensor, ...], told: str) -> Tensor:
    try:
        return exact(batch)
    except RuntimeError as error:  # a network with tensors of its own that stay float32, or no memory
        raise ValueError(f"{told}, and its float64 form cannot be run to tell why ({error})") from error


def _best_ms(run: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3
