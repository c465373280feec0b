"""Compares label maps with references: table on screen, JSON and CSV on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import EvaluateConfig
from ssmvision.recipes.segmentation.datalist import read_dataset_labels, strip_ending
from ssmvision.recipes.segmentation.metrics import Score, score_masks
from ssmvision.recipes.segmentation.scores import Evaluation, Rules, to_csv
from ssmvision.recipes.segmentation.scores_table import print_table
from ssmvision.recipes.segmentation.volumes import Grid, read_label_map
from ssmvision.recipes.segmentation.writing import check_free, write_bytes
from ssmvision.recipes.workers import Outcome, map_cases

__all__ = ["Evaluation", "evaluate_pairs", "run", "score_pairs"]

Pair = tuple[Path, Path]
Task = tuple[str, Path, Path]
# Cosine of the angle between two axes from which they do not count as perpendicular: 1 degree off.
SHEAR = math.sin(math.radians(1.0))


def run(config: EvaluateConfig) -> Evaluation:
    """Scores prediction against reference, prints the table and writes the files asked for.

    Raises:
        UserError: settings or folders are unusable, an output exists, or some cases could not be scored (the others
            are, in the files too; the message lists every failure).
    """
    rules = Rules(config.nsd_tolerance_mm, config.nsd_tolerances_mm or {}, config.lesion_iou)
    outputs = [path for path in (config.output_json, config.output_csv) if path is not None]
    pairs, missing, extra = find_pairs(config.prediction, config.reference)
    for path in outputs:
        check_free(path, config.overwrite, [file for pair in pairs for file in pair])
    described = None if config.labels else read_dataset_labels(config.reference)
    labels, complete = config.labels or described, described is not None
    console = Console(stderr=True)
    if extra:
        told = f"{config.prediction}: {len(extra)} prediction(s) without a reference are left out: {', '.join(extra)}"
        console.print(told, markup=False, highlight=False, soft_wrap=True)
    evaluation = score_pairs(pairs, labels, rules, complete, config.workers, missing)
    for note in evaluation.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    print_table(evaluation)
    if config.output_json is not None:
        write_bytes(config.output_json, json.dumps(evaluation.to_json(), indent=2) + "\n")
    if config.output_csv is not None:
        write_bytes(config.output_csv, to_csv(evaluation))
    if evaluation.failed:
        cases = len(pairs) + len(missing)
        raise UserError(
            f"evaluate: {len(evaluation.failed)} of {cases} case(s) could not be scored and are not in the means: "
            + "; ".join(evaluation.failed.values())
        )
    return evaluation


def find_pairs(prediction: Path, reference: Path) -> tuple[list[Pair], dict[str, str], list[str]]:
    """(prediction, reference) files: the two given, or those of the same case name in two folders.

    Returns:
        The pairs, what is wrong with each reference that has no prediction, and predictions without a reference.

    Raises:
        UserError: a path does not exist, they are not of a kind, or hold nothing to compare.
    """
    if reference.is_file() and prediction.is_file():
        return [(prediction, reference)], {}, []
    for path in (prediction, reference):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
    if not (reference.is_dir() and prediction.is_dir()):
        raise UserError(f"{prediction} and {reference}: one is a file, the other a folder; give two of a kind")
    references, predictions = _nifti(reference), _nifti(prediction)
    if not references:
        raise UserError(f"{reference}: 0 NIfTI files found; give the folder with the reference label maps")
    missing = sorted(set(references) - set(predictions))
    if len(missing) == len(references):
        raise UserError(f"{prediction}: none of the {len(missing)} reference case(s) has a prediction: {missing}")
    pairs = [(predictions[name], references[name]) for name in references if name in predictions]
    failed = {name: f"{prediction}: reference case {name!r} has no prediction; predict it too" for name in missing}
    return pairs, failed, sorted(set(predictions) - set(references))


def _nifti(folder: Path) -> dict[str, Path]:
    files = (p for p in sorted(folder.iterdir()) if p.name.lower().endswith((".nii", ".nii.gz")))
    return {strip_ending(p): p for p in files}


def evaluate_pairs(
    pairs: list[Pair],
    labels: dict[str, int] | None = None,
    nsd_tolerance_mm: float = 1.0,
    complete: bool = False,
) -> Evaluation:
    """`score_pairs` that stops at cases that cannot be scored.

    Raises:
        UserError: lists all of them.
    """
    evaluation = score_pairs(pairs, labels, Rules(nsd_tolerance_mm), complete)
    if evaluation.failed:
        raise UserError("; ".join(evaluation.failed.values()))
    return evaluation


def score_pairs(
    pairs: Sequence[Pair],
    labels: Mapping[str, int] | None = None,
    rules: Rules | None = None,
    complete: bool = False,
    workers: int = 1,
    failed: Mapping[str, str] | None = None,
    cases: Sequence[str] | None = None,
) -> Evaluation:
    """Scores (prediction, reference) files one after another, going on after one that cannot be scored.

    Args:
        pairs: the files.
        labels: name to id of the classes to score; None: every non-zero id in any file, as "label_ID".
        rules: how to compare.
        complete: `labels` are all there are, so that other ids in a file are an error.
        workers: processes, each with one case in memory.
        failed: cases that are known to be missing, and why.
        cases: a name for each pair; None: the reference file's.

    Raises:
        UserError: no class to score, or a tolerance for one that there is not.
    """
    rules = rules or Rules()
    problems = dict(failed or {})
    named = [strip_ending(reference) for _, reference in pairs] if cases is None else cases
    tasks = [(case, (case, *pair)) for case, pair in zip(named, pairs, strict=True)]
    if labels is None:
        outcomes = map_cases(_ids, tasks, workers)
        problems |= _problems(outcomes)
        found = {i for outcome in outcomes for i in outcome.value or ()}
        labels = {f"label_{i}": i for i in sorted(found)}
        tasks = [task for task in tasks if task[0] not in problems]
    classes = {name: i for name, i in labels.items() if i != 0}
    if not classes and tasks:
        raise UserError(f'labels: {dict(labels)} names no class but background; give for example {{"liver": 1}}')
    ids = [0, *classes.values()] if complete else None
    score = partial(_score, labels=classes, tolerances=rules.tolerances(classes), lesion_iou=rules.lesion_iou, ids=ids)
    results = map_cases(score, tasks, workers)
    problems |= _problems(results)
    scores = tuple(s for result in results for s in (result.value[0] if result.value else ()))
    notes = tuple(result.value[1] for result in results if result.value and result.value[1])
    return Evaluation(scores, classes, rules.nsd_tolerance_mm, rules, problems, notes)


def _problems(outcomes: Iterable[Outcome[Any]]) -> dict[str, str]:
    return {outcome.case: outcome.problem for outcome in outcomes if outcome.problem is not None}


def _ids(task: Task) -> set[int]:
    """Non-zero ids in two files."""
    return {int(i) for path in task[1:] for i in np.unique(read_label_map(path)[0])} - {0}


def _score(
    task: Task, labels: Mapping[str, int], tolerances: Mapping[str, float], lesion_iou: float, ids: list[int] | None
) -> tuple[tuple[Score, ...], str]:
    """Scores of a case, and what is odd about it."""
    case, prediction_path, reference_path = task
    reference, grid = read_label_map(reference_path, ids)
    prediction, _ = read_label_map(prediction_path, ids, grid)
    ml = abs(float(np.linalg.det(grid.affine[:3, :3]))) / 1000.0
    return score_masks(prediction, reference, labels, grid.spacing_mm, tolerances, case, lesion_iou, ml), _sheared(grid)


def _sheared(grid: Grid) -> str:
    """A note where distances cannot be exact, since they are taken along axes that count as perpendicular."""
    directions = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    cosine = float(np.abs(directions.T @ directions - np.eye(3)).max())
    if cosine <= SHEAR:
        return ""
    degrees = math.degrees(math.asin(min(1.0, cosine)))
    return f"{grid.path.name}: axes are {degrees:.1f} degrees off perpendicular; NSD and HD95 ignore that"
