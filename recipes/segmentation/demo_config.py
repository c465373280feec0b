"""Settings of the segmentation demo; standard library only, so that a command line can parse them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["CorruptionConfig", "DemoConfig", "SlabConfig"]


@dataclass(frozen=True)
class CorruptionConfig:
    """Simulated scanner artefacts. They are what makes the task need spatial context: clean, two thresholds solve it.

    Attributes:
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
                raise ValueError(f"{name} must be a finite number >= 0, got {value}")
        if not 0 < self.bias_fwhm_mm < float("inf"):
            raise ValueError(f"bias_fwhm_mm must be a finite number > 0 mm, got {self.bias_fwhm_mm}")


@dataclass(frozen=True)
class SlabConfig:
    """Where the head is cut. Coronal cuts only: the template is its own mirror image, so hemispheres would leak.

    Attributes:
        voxel_mm: edge of the cubic voxels in mm, 1 to 4; the 1 mm template is averaged over blocks of this edge.
        train_from_mm: the training slab is every voxel whose MNI y is at or in front of this coordinate, mm.
        test_to_mm: the test slab is every voxel whose MNI y is at or behind this coordinate, mm.
    """

    voxel_mm: int = 2
    train_from_mm: float = -16.0
    test_to_mm: float = -24.0

    def __post_init__(self) -> None:
        if self.voxel_mm not in (1, 2, 3, 4):
            raise ValueError(f"voxel_mm must be 1, 2, 3 or 4, got {self.voxel_mm}")
        if self.train_from_mm - self.test_to_mm < self.voxel_mm:
            raise ValueError(
                f"train_from_mm ({self.train_from_mm}) must lie at least one voxel ({self.voxel_mm} mm) in front of "
                f"test_to_mm ({self.test_to_mm}), or the slabs would touch"
            )


@dataclass(frozen=True)
class DemoConfig:
    """Trains a small U-Mamba on the front of one averaged head and tests it on the back.

    Attributes:
        out: folder for the data, the runs, the predictions and `report.html`.
        overwrite: replace a demo that is already in `out`.
        seed: of the corruptions, the weights and the sampling; the same seed gives the same report.
        twin: also train the same network without its state-space layer, as a control.
        corruption: strength of the simulated artefacts.
        slabs: voxel size and where the head is cut.
        train_copies: differently seeded corruptions of the training slab (augmentation of one subject).
        patch_size: training patch in voxels, (x, y, z).
        batch_size: patches a step.
        features: channels per stage of the network.
        steps: optimiser steps. Fixed, so that the result does not depend on how fast the machine is.
        max_minutes: stop training after this long, per network; the report says so if that happened.
        lr: peak learning rate of AdamW.
        threads: CPU threads; 0 keeps PyTorch's choice.
        accelerator: "cpu", "gpu", "mps" or "auto".
    """

    out: str = "ssmvision-demo"
    overwrite: bool = False
    seed: int = 0
    twin: bool = False
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    slabs: SlabConfig = field(default_factory=SlabConfig)
    train_copies: int = 12
    patch_size: tuple[int, int, int] = (32, 32, 32)
    batch_size: int = 2
    features: tuple[int, ...] = (12, 24, 48, 96)
    steps: int = 300
    max_minutes: float = 10.0
    lr: float = 3e-3
    threads: int = 0
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("train_copies", "batch_size", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.max_minutes <= 0:
            raise ValueError(f"max_minutes must be positive, got {self.max_minutes}")
        if self.threads < 0:
            raise ValueError(f"threads must be 0 (PyTorch's choice) or more, got {self.threads}")
