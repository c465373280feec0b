"""Names of the files that every training leaves; who only reads them imports no Lightning."""

from __future__ import annotations

__all__ = ["DIGESTS", "HISTORY", "LAST", "PREVIOUS", "TIMES"]

LAST, PREVIOUS, DIGESTS = "last.ckpt", "previous.ckpt", "last.ckpt.sha256"
HISTORY, TIMES = "metrics.csv", "times.csv"
