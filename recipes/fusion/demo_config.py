"""Settings of the fusion demo; light to import, so that a command line can parse them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.config import AugmentConfig, LossConfig, ModelConfig, TrainerConfig

__all__ = ["FusionDemoConfig", "Task"]

Task = Literal["t1-t2", "visible-nir", "multi-focus"]


def _loss() -> LossConfig:
    return LossConfig(structure=1.0, intensity=2.0, gradient=3.0, intensity_target="max")


def _trainer() -> TrainerConfig:
    return TrainerConfig(
        max_epochs=20,
        steps_per_epoch=40,
        max_minutes=4.0,
        batch_size=4,
        lr=1e-3,  # with so few crops a step, three times that has killed the network for good
        warmup_steps=50,
        validate_every=5,
        accelerator="cpu",
    )


@dataclass(frozen=True)
class FusionDemoConfig:
    """Trains a small FusionMamba on real pairs and compares it with classical fusion on pairs it has not seen.

    Args:
        out: folder for the runs, the fused pictures, the tables and `report.html`.
        overwrite: replace a demo that is already in `out`.
        tasks: kinds of pairs to train and test on, one network for all of them.
        seeds: of the weights and the crops; one training each.
        models: folder of an earlier demo, whose networks are tested instead of training new ones; null trains.
        shipped: also test the weights that ship with the package, which have seen no T1-T2 pair.
        model: the network.
        loss: what the fused image should keep.
        augment: random changes of the crops.
        trainer: length, optimiser and hardware of a training; its seed is replaced by each of `seeds`.
        patch_size: height and width of the training crops in pixels.
    """

    out: Path = Path("ssmvision-fusion")
    overwrite: bool = False
    tasks: tuple[Task, ...] = ("t1-t2", "visible-nir", "multi-focus")
    seeds: tuple[int, ...] = (0,)
    models: Path | None = None
    shipped: bool = True
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=_loss)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    trainer: TrainerConfig = field(default_factory=_trainer)
    patch_size: tuple[int, int] = (64, 64)

    def __post_init__(self) -> None:
        for name, values in (("tasks", self.tasks), ("seeds", self.seeds)):
            if not values or len(set(values)) != len(values):
                raise UserError(f"{name}: {list(values)} is not possible; give one or more, each once")
        if min(self.seeds) < 0:
            raise UserError(f"seeds: {list(self.seeds)} is not possible; give numbers of 0 or more")
