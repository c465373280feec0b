"""What a study of image classifiers leaves behind: tables as Markdown, every score as CSV and JSON, and figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ssmvision.recipes.classification.config import ModelConfig
from ssmvision.recipes.image_study.config import ImageStudyConfig
from ssmvision.recipes.image_study.figures import curves_png, speed_png
from ssmvision.recipes.image_study.summary import Result, Study, markdown, to_csv
from ssmvision.recipes.image_study.trainings import Training
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["REPORT", "read_result", "write_report"]

REPORT = "results.md"


def read_result(training: Training) -> Result:
    """Scores and curve of a finished training."""
    content = read_json(training.scores, "run the study again")
    curve = [
        (float(row["epoch"]), float(row["val_accuracy"]))
        for row in csv.DictReader(content["history"].splitlines())
        if row["val_accuracy"]
    ]
    found = (content["accuracy"], content["resolutions"], content["steps"], content["seconds"])
    return Result(training.entry, training.seed, *found, curve)


def write_report(
    config: ImageStudyConfig, study: Study, models: Mapping[str, ModelConfig], part: str, pictures: Sequence[int]
) -> Path:
    """Writes results.md, scores.csv, study.json, curves.png and speed.png into the study's folder.

    Args:
        config: of the study.
        study: scores and costs.
        models: of the entries, at the widths that the study found.
        part: name of the part of the data that the scores are of.
        pictures: how many training and how many such pictures.

    Returns:
        The path of results.md.
    """
    out = config.out
    write_bytes(out / "curves.png", curves_png(study))
    write_bytes(out / "speed.png", speed_png(study))
    write_bytes(out / "scores.csv", to_csv(study))
    content = {
        "settings": json.loads(json.dumps(asdict(config), default=str)),
        "models": {name: asdict(model) for name, model in models.items()},
        "costs": {name: asdict(cost) for name, cost in study.costs.items()},
    }
    write_bytes(out / "study.json", json.dumps(content, indent=1, default=str) + "\n")
    write_bytes(out / REPORT, f"{_setting(config, study, part, pictures)}\n\n{markdown(study)}")
    return out / REPORT


def _setting(config: ImageStudyConfig, study: Study, part: str, pictures: Sequence[int]) -> str:
    t = config.trainer
    planned = len(study.entries) * len(config.seeds)
    steps = ", ".join(f"{count:,}" for count in dict.fromkeys(r.steps for r in study.results))
    devices = ", ".join(dict.fromkeys(cost.device for cost in study.costs.values()))
    matched = config.match_parameters
    width = "" if matched is None else f" Widths are those with the number of parameters nearest to {matched:,}."
    seeds = ", ".join(map(str, config.seeds))
    return (
        f"{config.data.root}: {pictures[0]:,} training and {pictures[1]:,} {part} pictures; seeds {seeds}: "
        f"{len(study.results)} of {planned} trainings finished, {config.jobs} at a time on "
        f"{devices or 'an unmeasured device'}. Each: {t.max_epochs} epochs, {steps} steps of {t.batch_size} pictures, "
        f"{t.optimizer}, lr {t.lr:g}, {t.precision}.{width} Mean ± sample standard deviation over the seeds. Costs at "
        f"batches of {t.batch_size} in training and {config.inference_batch} in inference, {t.precision}."
    )
