"""Writes what may name patients, such as which files an anonymous case was made from."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["write_private_csv"]


def write_private_csv(path: Path, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV that others than its owner can at no moment read.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows(rows)
    write_bytes(path, text.getvalue(), mode=0o600)
