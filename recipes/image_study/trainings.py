"""The trainings of a study: which there are, and one of them from training to scores."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssmvision.recipes.classification.config import ClassifyTrainConfig, ModelConfig
from ssmvision.recipes.image_study.config import ImageStudyConfig
from ssmvision.recipes.study.records import record, slug, spent_seconds

__all__ = ["Training", "list_trainings", "run_training"]

SCORES = "scores.json"


@dataclass(frozen=True)
class Training:
    """One entry with one seed.

    Args:
        config: of the study.
        entry: its name.
        model: of the entry, at the width that the study found.
        seed: of the training.
        graph: record its network as a CUDA graph.
    """

    config: ImageStudyConfig
    entry: str
    model: ModelConfig
    seed: int
    graph: bool

    @property
    def name(self) -> str:
        """Part of all paths of this training."""
        return f"{slug(self.entry)}/seed_{self.seed}"

    @property
    def run(self) -> Path:
        """Run folder."""
        return self.config.out / "runs" / self.name

    @property
    def scores(self) -> Path:
        """The file whose presence says that the training is finished and scored."""
        return self.run / SCORES

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON values."""
        values: dict[str, Any] = {name: asdict(getattr(self.config, name)) for name in ("data", "augment", "trainer")}
        for name in ("accelerator", "threads", "max_minutes", "cuda_graph"):
            values["trainer"].pop(name)
        values |= {"model": asdict(self.model), "seed": self.seed}
        values |= {name: getattr(self.config, name) for name in ("img_size", "resolutions")}
        return dict(json.loads(json.dumps(values, default=str)))

    def train_config(self, resume: bool) -> ClassifyTrainConfig:
        """Settings of the training for the recipe."""
        config = self.config
        return ClassifyTrainConfig(
            data=config.data,
            out=self.run,
            model=self.model,
            augment=config.augment,
            trainer=replace(config.trainer, seed=self.seed, cuda_graph=self.graph),
            img_size=config.img_size,
            resume=resume,
            overwrite=not resume,
        )


def list_trainings(
    config: ImageStudyConfig, models: Mapping[str, ModelConfig], plain: Collection[str] = ()
) -> list[Training]:
    """Every entry and seed; seeds outermost, so that a study cut short has every entry.

    Args:
        config: of the study.
        models: of the entries.
        plain: entries that are trained without CUDA graphs, whatever the settings say.
    """
    return [
        Training(config, entry, model, seed, config.trainer.cuda_graph and entry not in plain)
        for seed in config.seeds
        for entry, model in models.items()
    ]


def run_training(training: Training) -> None:
    """Trains (or resumes), classifies the test pictures at every resolution and writes `training.scores`.

    The checkpoints are removed at the end, the weights stay.

    Raises:
        UserError: as the recipe's own commands, or the device or disk is full.
    """
    record(training, _train_and_score)


def _train_and_score(training: Training) -> dict[str, Any]:
    from ssmvision.recipes.classification import train
    from ssmvision.recipes.image_study.testing import accuracies
    from ssmvision.recipes.segmentation.checkpoints import LAST

    resume = (training.run / LAST).is_file()
    result = train.run(training.train_config(resume))
    scores = accuracies(training)
    for checkpoint in training.run.glob("*.ckpt*"):
        checkpoint.unlink()
    done = {"steps": result.steps, "seconds": round(spent_seconds(training.run), 1)}
    return {**done, **scores, "history": result.history.read_text(encoding="utf-8")}
