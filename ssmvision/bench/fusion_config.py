"""Settings of `ssmvision bench fusion`, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssmvision.errors import UserError

__all__ = ["BenchFusionConfig"]


@dataclass(frozen=True)
class BenchFusionConfig:
    """Time FusionMamba: a pair fused, or a training step, in the precisions and forms that it has.

    The network is built at random. A training step is forward, mean absolute error to the brighter image, backward and
    Adam (fused on a GPU).

    Attributes:
        device: where to run.
        model: the published default (225 million parameters as published) or its "tiny".
        sizes: image side in pixels and batch size, separated by commas.
        train: also time training steps.
        tf32: on a GPU, let float32 matrix products use TF32, as PyTorch lets convolutions by default.
        repeats: runs on a CPU after one warm-up; the fastest counts.
        threads: CPU threads; 0 keeps PyTorch's choice.
        json: print JSON instead of a table.
        out: also write the JSON to this file.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    model: Literal["default", "tiny"] = "default"
    sizes: str = "256/1"
    train: bool = False
    tf32: bool = False
    repeats: int = 3
    threads: int = 0
    json: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats}: give 1 or more")
