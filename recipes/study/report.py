"""What a study leaves behind: tables as Markdown, every score as CSV and JSON, and figures."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ssmvision.recipes.segmentation.datalist import Dataset, read_json
from ssmvision.recipes.segmentation.metrics import score_from_row
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map
from ssmvision.recipes.segmentation.writing import write_bytes
from ssmvision.recipes.study.config import StudyConfig
from ssmvision.recipes.study.pictures import Rows, Shown, cases_png, mean_curves
from ssmvision.recipes.study.summary import Result, Study, markdown, mean_score, to_csv
from ssmvision.recipes.study.trainings import Training

__all__ = ["REPORT", "read_result", "write_report"]

REPORT = "results.md"


def read_result(training: Training) -> tuple[Result, Rows]:
    """Scores and history of a finished training."""
    content = read_json(training.scores, "run the study again")
    scores = tuple(score_from_row(row) for row in content["scores"])
    rows = [
        {key: float(value) for key, value in row.items() if value}
        for row in csv.DictReader(content["history"].splitlines())
    ]
    result = Result(training.network, training.fold, training.seed, scores, content["steps"], content["seconds"])
    return result, rows


def write_report(config: StudyConfig, dataset: Dataset, study: Study, trainings: Sequence[Training]) -> Path:
    """Writes results.md, scores.csv, study.json, curves.png and cases.png into the study's folder.

    Args:
        config: of the study.
        dataset: its cases.
        study: scores and costs.
        trainings: those that are finished.

    Returns:
        The path of results.md.
    """
    out = config.out
    histories: dict[str, list[Rows]] = {name: [] for name in study.networks}
    for training in trainings:
        histories[training.network].append(read_result(training)[1])
    write_bytes(out / "curves.png", mean_curves(histories))
    write_bytes(out / "cases.png", cases_png(_extremes(dataset, study, trainings), len(study.classes)))
    write_bytes(out / "scores.csv", to_csv(study))
    settings = json.loads(json.dumps(asdict(config), default=str))
    content = {"settings": settings, "costs": {name: asdict(cost) for name, cost in study.costs.items()}}
    write_bytes(out / "study.json", json.dumps(content, indent=1) + "\n")
    write_bytes(out / REPORT, f"{_setting(config, dataset, study)}\n\n{markdown(study)}")
    return out / REPORT


def _setting(config: StudyConfig, dataset: Dataset, study: Study) -> str:
    t = config.trainer
    planned = len(study.networks) * len(study.folds) * len(config.seeds)
    devices = ", ".join(dict.fromkeys(cost.device for cost in study.costs.values()))
    seeds = ", ".join(map(str, config.seeds))
    patch = " x ".join(map(str, config.patch_size))
    spacing = "each case's own voxels" if config.spacing_mm is None else f"{config.spacing_mm} mm voxels"
    return (
        f"{len(dataset.training)} cases, {len(study.folds)} folds, seeds {seeds}: {len(study.results)} of {planned} "
        f"trainings finished, {config.jobs} at a time on {devices}. Each: "
        f"{t.max_epochs * t.steps_per_epoch} steps of {t.batch_size} patches of {patch} ({spacing}), {t.optimizer}, "
        f"lr {t.lr:g}, {t.precision}. Mean ± sample standard deviation over the seeds. "
        f"Surface Dice at {config.nsd_tolerance_mm:g} mm."
    )


def _extremes(dataset: Dataset, study: Study, trainings: Sequence[Training]) -> list[Shown]:
    """The case with the highest and that with the lowest mean Dice, as the first seed's networks label them."""
    cases = {case.id: case for case in dataset.training}
    by_case = {
        name: mean_score([s for r in study.results for s in r.scores if s.case == name], "dice")
        for name in dict.fromkeys(s.case for r in study.results for s in r.scores)
    }
    # NaN, where neither reference nor predictions have a label, is neither more nor less than anything.
    by_case = {name: dice for name, dice in by_case.items() if not math.isnan(dice)} or by_case
    best, worst = max(by_case, key=by_case.__getitem__), min(by_case, key=by_case.__getitem__)
    shown = []
    for title, name in dict.fromkeys((("best", best), ("worst", worst))):
        volume = read_image(cases[name].images, dataset.channels)
        label: Any = cases[name].label
        predictions, notes = {}, {}
        for training in trainings:
            if name in training.test and training.network not in predictions:
                path = training.predictions / f"{name}.nii.gz"
                predictions[training.network] = read_label_map(path, None, volume.grid)[0]
                dice = mean_score([s for s in read_result(training)[0].scores if s.case == name], "dice")
                notes[training.network] = f"Dice {dice:.2f}"
        reference = read_label_map(label, None, volume.grid)[0]
        shown.append(Shown(f"{title}: {name}", volume.data[0], volume.grid.affine, reference, predictions, notes))
    return shown
