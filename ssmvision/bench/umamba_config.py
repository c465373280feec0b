"""Settings of `ssmvision bench umamba`, light to import."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssmvision.errors import UserError

__all__ = ["BenchUMambaConfig"]


@dataclass(frozen=True)
class BenchUMambaConfig:
    """Time training steps of the 3D U-Mamba networks beside the same network without its state-space layers.

    A step is forward, Dice and cross entropy with deep supervision, backward, gradient clipping and SGD with momentum.
    Images and labels are random and lie on the device already.

    Attributes:
        device: where to run.
        shape: "abdomen_ct" (two patches of 40 x 224 x 192, six stages of 32 to 320 channels, 14 classes) or "tiny".
        networks: out of twin, bot and enc, separated by commas; "twin" is "enc" without its state-space layers.
        precisions: out of float32, tf32, bfloat16, bfloat16_ssm and float16, separated by commas. PyTorch lets
            convolutions of float32 layers use TF32; "tf32" lets matrix products use it too, as
            `torch.set_float32_matmul_precision("high")` does. The others are autocast, from which the state-space
            layers are left out (they compute in float32) but for bfloat16_ssm.
        channels_last: memory order of images and weights.
        steps: timed steps after a warm-up of three; the median counts.
        threads: CPU threads; 0 keeps PyTorch's choice.
        json: print JSON instead of a table.
        out: also write the JSON to this file.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    shape: Literal["abdomen_ct", "tiny"] = "abdomen_ct"
    networks: str = "twin,bot,enc"
    precisions: str = "float32,tf32,bfloat16"
    channels_last: bool = False
    steps: int = 10
    threads: int = 0
    json: bool = False
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"--steps {self.steps}: give 1 or more")
