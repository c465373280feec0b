"""The trainings of a study: which there are, and one of them from training to scores."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import DataConfig, ModelConfig, PredictConfig, TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset, read_dataset
from ssmvision.recipes.study.config import StudyConfig
from ssmvision.recipes.study.records import record, slug, spent_seconds

__all__ = [
    "SCORES",
    "Training",
    "folds_of",
    "list_trainings",
    "model_of",
    "model_settings",
    "run_training",
    "train_config",
]

SCORES = "scores.json"


@dataclass(frozen=True)
class Training:
    """One network on one fold with one seed.

    Args:
        config: of the study.
        root: nnU-Net raw folder.
        network: as in `StudyConfig.networks`.
        fold: its number.
        test: ids of the cases held out.
        seed: of the training.
    """

    config: StudyConfig
    root: Path
    network: str
    fold: int
    test: tuple[str, ...]
    seed: int

    @property
    def name(self) -> str:
        """Part of all paths of this training."""
        return f"{slug(self.network)}/fold_{self.fold}/seed_{self.seed}"

    @property
    def run(self) -> Path:
        """Run folder."""
        return self.config.out / "runs" / self.name

    @property
    def predictions(self) -> Path:
        """Folder of the label maps of the cases held out."""
        return self.config.out / "predictions" / self.name

    @property
    def scores(self) -> Path:
        """The file whose presence says that the training is finished, predicted and scored."""
        return self.predictions / SCORES

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON values."""
        keep = ("model", "augment", "trainer", "patch_size", "spacing_mm", "tta", "nsd_tolerance_mm")
        values = {name: value for name, value in asdict(self.config).items() if name in keep}
        values["model"] = model_settings(
            replace(self.config.model, mixer_args=model_of(self.config, self.network).mixer_args)
        )
        for name in ("accelerator", "threads", "max_minutes"):
            values["trainer"].pop(name)
        decided = {"network": self.network, "seed": self.seed, "test": self.test}
        return dict(json.loads(json.dumps(values | decided, default=str)))


def model_of(config: StudyConfig, network: str) -> ModelConfig:
    """The settings of a network of the study."""
    name, _, mixer = network.partition("/")
    mixer = mixer or "mamba"
    return replace(config.model, name=name, mixer=mixer, mixer_args=config.mixer_args.get(mixer, {}))  # type: ignore[arg-type]


def model_settings(model: ModelConfig) -> dict[str, Any]:
    """A network's settings for the records, where those of a mixer without options have none, as before there were."""
    return {name: value for name, value in asdict(model).items() if name != "mixer_args" or value}


def folds_of(config: StudyConfig, dataset: Dataset) -> list[tuple[str, ...]]:
    """Ids of the cases held out per fold.

    Raises:
        UserError: an unknown case, one in two folds, or no case left to train on.
    """
    ids = [case.id for case in dataset.training]
    folds = list(config.test_cases) or [(case,) for case in ids]
    listed = [case for fold in folds for case in fold]
    unknown, twice = sorted(set(listed) - set(ids)), sorted({case for case in listed if listed.count(case) > 1})
    if unknown or twice:
        raise UserError(f"test_cases: {unknown or twice} {'unknown' if unknown else 'in two folds'}; cases are {ids}")
    if any(not fold or len(fold) >= len(ids) for fold in folds):
        raise UserError(f"test_cases: {folds} leave a fold without cases to test or train; there are {len(ids)} cases")
    return folds


def list_trainings(config: StudyConfig, root: Path) -> list[Training]:
    """Every network, fold and seed; seeds outermost, so that a study cut short has whole folds."""
    folds = folds_of(config, read_dataset(root))
    return [
        Training(config, root, network, i, test, seed)
        for seed in config.seeds
        for i, test in enumerate(folds)
        for network in config.networks
    ]


def run_training(training: Training) -> None:
    """Trains (or resumes), predicts the cases held out, scores them and writes `training.scores`.

    The checkpoints are removed at the end, the weights stay.

    Raises:
        UserError: as the recipe's own commands, or the device or disk is full.
    """
    record(training, _train_and_score)


def _train_and_score(training: Training) -> dict[str, Any]:
    from ssmvision.recipes.segmentation import predict, train
    from ssmvision.recipes.segmentation.checkpoints import LAST
    from ssmvision.recipes.segmentation.evaluate import evaluate_pairs

    config = training.config
    resume = (training.run / LAST).is_file()
    result = train.run(train_config(training, resume))
    dataset = read_dataset(training.root)
    cases = {case.id: case for case in dataset.training}
    shutil.rmtree(training.predictions, ignore_errors=True)
    pairs = []
    for name in training.test:
        output = training.predictions / f"{name}.nii.gz"
        device = "cpu" if config.trainer.accelerator == "cpu" else "auto"
        predict.run(PredictConfig(training.run, cases[name].images[0], output, tta=config.tta, device=device))
        reference = cases[name].label
        assert reference is not None  # training cases have one
        pairs.append((output, reference))
    evaluation = evaluate_pairs(pairs, dataset.labels, config.nsd_tolerance_mm)
    for checkpoint in training.run.glob("*.ckpt*"):
        checkpoint.unlink()
    done = {"steps": result.steps, "seconds": round(spent_seconds(training.run), 1), "parameters": result.parameters}
    history = result.history.read_text(encoding="utf-8")
    scores = [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in score.row().items()}
        for score in evaluation.scores
    ]
    return {**done, "scores": scores, "history": history}


def train_config(training: Training, resume: bool) -> TrainConfig:
    """Settings of the training for the recipe."""
    config = training.config
    return TrainConfig(
        data=DataConfig(training.root, validation_cases=training.test, spacing_mm=config.spacing_mm),
        out=training.run,
        model=model_of(config, training.network),
        augment=config.augment,
        trainer=replace(config.trainer, seed=training.seed),
        patch_size=config.patch_size,
        resume=resume,
        overwrite=not resume,
    )
