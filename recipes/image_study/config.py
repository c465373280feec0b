"""Settings of a study of image classifiers: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ssmvision.recipes.classification.config import AugmentConfig, DataConfig, TrainerConfig

__all__ = ["Entry", "ImageStudyConfig"]


@dataclass(frozen=True)
class Entry:
    """One classifier of a study.

    Args:
        name: in tables and figures.
        model: of timm, ours among them.
        arguments: of that model, over `ImageStudyConfig.arguments`.
        group: which mark it has in the figure.
        width_step: the width is matched in steps of so many channels.
    """

    name: str
    model: str
    arguments: dict[str, Any] = field(default_factory=dict)
    group: Literal["state space", "attention", "convolution", "none"] = "state space"
    width_step: int = 8


@dataclass(frozen=True)
class ImageStudyConfig:
    """Trains image classifiers with several seeds at equal budget, and compares them on the test pictures.

    A training that is finished is kept when the command is given again; one that was stopped is resumed.

    Args:
        data: what to learn from; scores are those of its test part, or of its validation part if it has none.
        entries: the classifiers; the first is what the others are compared with.
        out: folder for the runs, the costs and the report.
        task: chooses this kind of study where a file is given to `ssmvision study`.
        arguments: of every entry's model.
        seeds: of the trainings; each entry is trained once per seed.
        augment: random changes of the training pictures.
        trainer: length, optimiser and hardware of every training; not the seed.
        img_size: height and width in pixels that the networks learn from; null: those of the first training picture.
        match_parameters: each entry gets the width (`dims` if its arguments have them, else `embed_dim`) whose number
            of parameters is nearest to this; null: the widths are those of the arguments.
        resolutions: heights, in pixels, that the test pictures are resized to for the networks as trained; the width
            follows. Position embeddings are resampled, S4ND kernels are sampled anew.
        inference_batch: pictures at once where the speed of inference is measured.
        jobs: trainings at a time, each in a process of its own, all on the one device.
        costs_only: measure the costs and stop.
        report_only: write the report of what is finished and stop.
        overwrite: replace the study in `out`.
    """

    data: DataConfig
    entries: tuple[Entry, ...]
    out: Path
    task: Literal["classification"] = "classification"
    arguments: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(library="batched"))
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    img_size: tuple[int, int] | None = None
    match_parameters: int | None = None
    resolutions: tuple[int, ...] = ()
    inference_batch: int = 256
    jobs: int = 1
    costs_only: bool = False
    report_only: bool = False
    overwrite: bool = False
