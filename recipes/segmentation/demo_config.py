"""Settings of the segmentation demo; light to import, so that a command line can parse them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ssmvision.errors import UserError

__all__ = ["CorruptionConfig", "DemoConfig", "SlabConfig"]


@dataclass(frozen=True)
class CorruptionConfig:
    """Simulated scanner artefacts. They are what makes the task need spatial context: clean, two thresholds solve it.

    Args:
        bias_strength: peak of the log bias field; 0.5 multiplies intensities by exp(-0.5) to exp(0.5), 0.61 to 1.65.
        bias_fwhm_mm: smoothness of the bias field, full width at half maximum in mm.
        noise_sd: standard deviation of the Rician noise, on the template's intensity scale of 0 to 255.
    """

    bias_strength: float = 0.5
    bias_fwhm_mm: float = 70.0
    noise_sd: float = 30.0

    def __post_init__(self) -> None:
        for name, value in (("bias_strength", self.bias_strength), ("noise_sd", self.noise_sd)):
            if not 0 <= value < float("inf"):
                raise UserError(f"corruption.{name}: {value} is not possible; give a finite number, 0 or more")
        if not 0 < self.bias_fwhm_mm < float("inf"):
            raise UserError(f"corruption.bias_fwhm_mm: {self.bias_fwhm_mm} is not possible; give a length above 0 mm")


@dataclass(frozen=True)
class SlabConfig:
    """Where the head is cut. Coronal cuts only: the template is its own mirror image, so hemispheres would leak.

    Args:
        voxel_mm: edge of the cubic voxels in mm, 1 to 4; the 1 mm template is averaged over blocks of this edge.
        train_from_mm: the training slab is every voxel whose MNI y is at or in front of this coordinate, mm.
        test_to_mm: the test slab is every voxel whose MNI y is at or behind this coordinate, mm.
    """

    voxel_mm: int = 2
    train_from_mm: float = -16.0
    test_to_mm: float = -24.0

    def __post_init__(self) -> None:
        if self.voxel_mm not in (1, 2, 3, 4):
            raise UserError(f"slabs.voxel_mm: {self.voxel_mm} is not possible; give 1, 2, 3 or 4")
        if self.train_from_mm - self.test_to_mm < self.voxel_mm:
            raise UserError(
                f"slabs.train_from_mm: {self.train_from_mm} is less than one voxel ({self.voxel_mm} mm) in front of "
                f"slabs.test_to_mm {self.test_to_mm}, so the slabs would touch; move the cuts apart"
            )


@dataclass(frozen=True)
class DemoConfig:
    """Trains a small U-Mamba on the front of one averaged head and tests it on the back.

    Args:
        out: folder for the data, the runs, the predictions and `report.html`.
        overwrite: replace a demo that is already in `out`.
        seed: of the corruptions, the weights and the sampling; the same seed gives the same report.
        twin: also train the same network without its state-space layer, as a control.
        corruption: strength of the simulated artefacts.
        slabs: voxel size and where the head is cut.
        train_copies: differently seeded corruptions of the training slab (augmentation of one subject).
        patch_size: training patch in voxels, (x, y, z); multiples of 2^(stages - 1).
        batch_size: patches per step.
        features: channels per stage of the network.
        epochs: length of the training; fixed, so that the result does not depend on the machine's speed.
        steps_per_epoch: optimiser steps between two lines of the training curve.
        max_minutes: stop a training after the epoch in which this time is spent; the report says so if that happened.
        lr: start of AdamW's polynomial learning-rate schedule.
        threads: CPU threads of torch; null: torch's own choice.
        accelerator: "cpu", "gpu", "mps" or "auto".
    """

    out: Path = Path("ssmvision-demo")
    overwrite: bool = False
    seed: int = 0
    twin: bool = False
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    slabs: SlabConfig = field(default_factory=SlabConfig)
    train_copies: int = 12
    patch_size: tuple[int, int, int] = (32, 32, 32)
    batch_size: int = 2
    features: tuple[int, ...] = (12, 24, 48, 96)
    epochs: int = 16
    steps_per_epoch: int = 25
    max_minutes: float = 10.0
    lr: float = 3e-3
    threads: int | None = None
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("train_copies", "batch_size", "epochs", "steps_per_epoch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is not possible; give 1 or more")
        if self.seed < 0:
            raise UserError(f"seed: {self.seed} is not possible; give 0 or more")
        if not self.max_minutes > 0:
            raise UserError(f"max_minutes: {self.max_minutes} is not possible; give a number above 0")
