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


def compare(
    path: Path, nodes: int, seconds: float, run: Run, model: Run, batches: Sequence[tuple[Tensor, ...]]
) -> ExportReport:
    """Runs both on all batches, and times them on the first.

    Args:
        path: the file, alone in its folder but for what belongs to it.
        nodes, seconds: see `ExportReport`.
        run: the file in its runtime.
        model: what it was made from.
        batches: inputs of `forward`.
    """
    error, same, positions = 0.0, 0, 0
    for batch in batches:
        got, want = run(batch), model(batch)
        error = max(error, _error(got, want))
        agree = got.argmax(1) == want.argmax(1)
        same, positions = same + int(agree.sum()), positions + agree.numel()
    times = (_best_ms(lambda f=f: f(batches[0])) for f in (run, model))  # type: ignore[misc]
    size = sum(file.stat().st_size for file in path.parent.iterdir()) / 1e6
    return ExportReport(path, size, nodes, seconds, len(batches), error, same / max(positions, 1), *times)


def _error(got: Tensor, want: Tensor) -> float:
    found = float((got - want).abs().max() / want.abs().max().clamp(min=1e-30))
    return math.inf if math.isnan(found) else found


def _best_ms(run: Callable[[], object]) -> float:
    found = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found) * 1e3
