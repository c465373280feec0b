"""Settings of `ssmvision bench export`, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["BenchExportConfig"]


@dataclass(frozen=True)
class BenchExportConfig:
    """Compile, export and compare models at their full size on this CPU, one after the other, the smallest first.

    Weights are random: what is compared is arithmetic. Inputs are random as well, one image and a batch of three.

    Attributes:
        models: shell pattern of their names in `ssmvision models`.
        backend: of torch.compile: "aot_eager" needs no compiler on the machine, "inductor" does; "none" leaves
            compiling out.
        voxels: side of the volumes that 3D networks get.
        threads: CPU threads; 0 keeps PyTorch's choice.
        json: print JSON instead of a table.
        out: write the rows as JSON to this file after every model, and take those that it has already as done.
    """

    models: str = "*"
    backend: Literal["aot_eager", "inductor", "none"] = "aot_eager"
    voxels: int = 64
    threads: int = 0
    json: bool = False
    out: Path | None = None
