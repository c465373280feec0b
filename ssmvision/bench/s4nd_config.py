"""Settings of `ssmvision bench s4nd`, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssmvision.errors import UserError

__all__ = ["BenchS4NDConfig"]


@dataclass(frozen=True)
class BenchS4NDConfig:
    """Time S4ND's global convolution beside the N-D FFT, a depthwise 7^d convolution, and reading and writing once.

    Forward, and forward with backward (gradients of input, kernels and skip). The kernels are given: making them from
    a state-space system is not timed.

    Attributes:
        device: where to run.
        dtype: of the maps. "auto" is float32 on a CPU, bfloat16 on a GPU.
        precision: of our products, see `long_conv_nd`.
        backend: "auto", or the backend to time as ours.
        shapes: which rows to run, separated by commas; "auto" is those meant for the device, "all" every one. An
            unknown one is answered with the list.
        repeats: turns on a CPU after one warm-up; the fastest counts, the median stands beside it.
        threads: CPU threads; 0 keeps PyTorch's choice.
        json: print JSON instead of a table.
        out: also write the JSON to this file.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16"] = "auto"
    backend: str = "auto"
    shapes: str = "auto"
    repeats: int = 5
    threads: int = 0
    json: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats}: give 1 or more")
