"""`ssmvision train`: one training, or one for every fold of a cross-validation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ssmvision.recipes.segmentation import train
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import read_dataset
from ssmvision.recipes.segmentation.folds import SPLITS
from ssmvision.recipes.segmentation.loading import CACHE
from ssmvision.recipes.segmentation.run_folder import CONFIG

__all__ = ["fold_configs", "run"]


def run(config: TrainConfig) -> list[train.RunResult]:
    """Trains; with `data.fold` "each" all folds one after another, into OUT/fold0, OUT/fold1, ...

    With `resume`, finished folds stay as they are, the one that was interrupted goes on, and the others follow.

    Raises:
        UserError: as `train.run`; the folds before are finished then.
    """
    if config.data.fold != "each":
        return [train.run(config)]
    results = []
    console = Console(stderr=True)
    for fold in fold_configs(config):
        results.append(train.run(fold))
        scores = ", ".join(f"{name} {value:.4f}" for name, value in results[-1].validation_dice.items())
        console.print(f"{fold.out.name}: Dice of held-out cases {scores}", markup=False, highlight=False)
    return results


def fold_configs(config: TrainConfig) -> list[TrainConfig]:
    """Settings of every fold; with a plan they share one cache."""
    shared = config.out / CACHE if config.plan is not None else None
    configs = []
    for fold in range(_count(config)):
        out = config.out / f"fold{fold}"
        data = replace(config.data, fold=fold, cache_dir=config.data.cache_dir or shared)
        configs.append(replace(config, out=out, data=data, resume=config.resume and (out / CONFIG).is_file()))
    return configs


def _count(config: TrainConfig) -> int:
    """How many folds there are; `folds.split` says what is wrong with the file, if anything is."""
    listed: Path = read_dataset(config.data.root).path.parent / SPLITS
    try:
        content = json.loads(listed.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return max(1, config.data.folds)
    return len(content) if isinstance(content, list) and content else 1
