"""Settings of `ssmvision bench compile`, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["BenchCompileConfig"]


@dataclass(frozen=True)
class BenchCompileConfig:
    """Time models as they are and compiled by torch.compile, on a GPU both also as CUDA graphs.

    A training step is forward, mean square of the output, backward and fused AdamW. A model that cannot be compiled as
    one graph is an error.

    Attributes:
        device: "cuda", or "cpu", for which torch.compile needs a C++ compiler on the machine.
        models: image classifiers of timm, ours included, and UMambaBot (3D, default widths), separated by commas.
        pixels: image side.
        voxels: side of UMambaBot's volumes.
        batch: images; volumes come in pairs.
        steps: "infer", "train" or both.
        dtype: of the computation, by autocast where it is not float32.
        dynamic: leave sizes open in the compiled graph.
        json: print JSON instead of a table.
        out: write the rows as JSON to this file after every model.
    """

    device: Literal["cuda", "cpu"] = "cuda"
    models: str = "vim_small,vmamba_tiny,s4nd_convnext_tiny,UMambaBot,vit_small_patch16_224,convnext_tiny"
    pixels: int = 224
    voxels: int = 64
    batch: int = 64
    steps: Literal["infer", "train", "both"] = "both"
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    dynamic: bool = False
    json: bool = False
    out: Path | None = None
