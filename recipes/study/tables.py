"""Numbers of a study as text: mean and spread, differences with their error, Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

__all__ = ["difference", "spread", "table"]


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean and sample standard deviation; "-" without values."""
    if not values:
        return "-"
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def difference(values: Sequence[float], reference: Sequence[float]) -> tuple[float, float] | None:
    """Mean minus that of the reference and its standard error over the seeds; None with fewer than two of either.

    The error is that of two independent means (Welch): it holds the chance of the training, not that of the data.
    """
    if len(values) < 2 or len(reference) < 2:
        return None
    error = math.sqrt(sum(statistics.variance(v) / len(v) for v in (values, reference)))
    return statistics.fmean(values) - statistics.fmean(reference), error


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; numbers to the right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * w) if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join([line(heads), f"| {' | '.join(rule)} |", *map(line, rows)])
