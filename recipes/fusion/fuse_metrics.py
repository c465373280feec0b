"""All fusion metrics of every pair, as a table in CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.metrics.fusion import METRICS, applicable, fusion_metrics
from ssmvision.recipes.fusion.progress import shown
from ssmvision.recipes.segmentation.writing import check_free, write_bytes

__all__ = ["Row", "check_report", "measured", "write_report"]

# Slices measured together up to so many pixels: the metrics hold dozens of float64 maps of each.
_PIXELS_AT_ONCE = 2**18
Slices = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One pair's metrics; None where the images are too small for one.

    Attributes:
        pair: its name.
        slices: how many the values are means over.
        values: by the names of `ssmvision.metrics.fusion.METRICS`.
    """

    pair: str
    slices: int
    values: dict[str, float | None]


def measured(pair: str, a: Slices, b: Slices, fused: Slices) -> Row:
    """Means over slices (S, H, W) of luminance in 0..1.

    Slices with a constant source, such as air beside a head, are left out unless all of them are such: most metrics
    mean nothing there.
    """
    kept = (np.ptp(a, axis=(1, 2)) > 0) & (np.ptp(b, axis=(1, 2)) > 0)
    kept = kept if kept.any() else np.ones_like(kept)
    images = [torch.from_numpy(np.ascontiguousarray(x[kept])).unsqueeze(1) for x in (a, b, fused)]
    height, width = images[0].shape[2:]
    names = applicable(height, width)
    step = max(1, _PIXELS_AT_ONCE // (height * width))
    parts = [
        fusion_metrics(*(x[i : i + step] for x in images), data_range=1.0, names=names)
        for i in shown(range(0, len(images[0]), step), "measuring slices")
    ]
    means = {name: float(torch.cat([part[name] for part in parts]).mean()) for name in names}
    return Row(pair, int(kept.sum()), {name: means.get(name) for name in METRICS})


def check_report(path: Path, overwrite: bool) -> None:
    """Refuses a report's path that exists, or whose ending is not known.

    Raises:
        UserError: with what to take instead.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise UserError(f"{path}: metrics are written as a table; end the name in .csv or .json")
    check_free(path, overwrite)


def write_report(path: Path, rows: Sequence[Row], settings: dict[str, Any], failed: Sequence[str] = ()) -> None:
    """Writes the rows; JSON also holds each metric's convention, the settings, and the pairs that failed."""
    if path.suffix.lower() == ".json":
        conventions = {name: metric.convention for name, metric in METRICS.items()}
        pairs = [
            {"pair": row.pair, "slices": row.slices, "metrics": {k: _finite(v) for k, v in row.values.items()}}
            for row in rows
        ]
        content = {"settings": settings, "conventions": conventions, "pairs": pairs, "failed": list(failed)}
        write_bytes(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["pair", "method", "slices", *METRICS])
    for row in rows:
        cells = ["" if _finite(value) is None else f"{value:.6g}" for value in row.values.values()]
        table.writerow([row.pair, settings["method"], row.slices, *cells])
    write_bytes(path, text.getvalue())


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
