"""Settings of the benchmarks, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["BenchScanConfig"]


@dataclass(frozen=True)
class BenchScanConfig:
    """Time the selective scan beside the sequential loop that defines it, and measure its training memory.

    Attributes:
        device: where to run.
        dtype: of the inputs; the state is float32 whatever it is.
        backend: "auto", or the backend to time.
        shapes: which of the table's rows to run; "all" is every row.
        repeats: timed runs per row after one warm-up; the fastest counts.
        threads: CPU threads; 0 keeps PyTorch's choice.
        json: print JSON instead of a table.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    backend: str = "auto"
    shapes: Literal["all", "sequence", "vim", "volume"] = "all"
    repeats: int = 3
    threads: int = 0
    json: bool = False
