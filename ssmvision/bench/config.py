"""Settings of the benchmarks, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssmvision.errors import UserError

__all__ = ["BenchCpuConfig", "BenchScanConfig", "BenchVimConfig"]


@dataclass(frozen=True)
class BenchScanConfig:
    """Time the selective scan: on a CPU beside the loop that defines it, on a GPU beside its floor and its peers.

    Attributes:
        device: where to run.
        dtype: of the inputs; the state is float32 whatever it is. "auto" is float32 on a CPU, bfloat16 on a GPU.
        backend: "auto", or the backend to time.
        shapes: which rows to run, separated by commas; "all" is every row. An unknown one is answered with the list.
        repeats: timed runs per row after one warm-up, the fastest counts (CPU only).
        threads: CPU threads; 0 keeps PyTorch's choice.
        json: print JSON instead of a table.
        out: also write the JSON to this file.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    backend: str = "auto"
    shapes: str = "all"
    repeats: int = 3
    threads: int = 0
    json: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats}: give 1 or more")


@dataclass(frozen=True)
class BenchVimConfig:
    """Time an image model beside another one on a GPU: throughput, memory, and the latency of one image.

    A training step is forward, loss, backward and fused AdamW; weights are float32. Every figure is given eagerly and
    as one captured CUDA graph.

    Attributes:
        model: any image classifier of timm, ours included, such as s4nd_convnext_tiny.
        peer: the model beside it, such as convnext_tiny; "" for none.
        sizes: image side in pixels and batch size, separated by commas.
        dtype: of the computation, by autocast where it is not float32.
        train: also time training steps, where a batch holds more than one image.
        json: print JSON instead of a table.
        out: also write the JSON to this file.
    """

    model: str = "vim_small"
    peer: str = "vit_small_patch16_224"
    sizes: str = "224/64,1248/4,224/1"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    train: bool = True
    json: bool = False
    out: Path | None = None


@dataclass(frozen=True)
class BenchCpuConfig:
    """Time a state-space model beside a vision transformer on this CPU, and its scan beside the loop that defines it.

    Attributes:
        model: of ours, by its name in timm.
        peer: any image classifier of timm.
        pixels: image side.
        batch: images.
        rounds: every contender runs twice a round, and the second time counts.
        threads: CPU threads; 0 keeps PyTorch's choice.
        json: print JSON instead of a table.
        out: also write the JSON to this file.
    """

    model: str = "vim_tiny"
    peer: str = "vit_tiny_patch16_224"
    pixels: int = 224
    batch: int = 1
    rounds: int = 10
    threads: int = 0
    json: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise UserError(f"--rounds {self.rounds}: give 1 or more")
