"""Compares label maps with references: table on screen, JSON and CSV on disk."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import EvaluateConfig
from ssmvision.recipes.segmentation.datalist import read_dataset_labels, strip_ending
from ssmvision.recipes.segmentation.metrics import Score, score_masks
from ssmvision.recipes.segmentation.volumes import read_label_map
from ssmvision.recipes.segmentation.writing import check_free, write_bytes

__all__ = ["Evaluation", "evaluate_pairs", "print_table", "run"]

METRICS = ("dice", "nsd", "hd95_mm")


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases and classes.

    Args:
        scores: one per case and class.
        labels: name to id, background left out.
        nsd_tolerance_mm: of the NSD column.
    """

    scores: tuple[Score, ...]
    labels: dict[str, int]
    nsd_tolerance_mm: float

    def mean(self, metric: str, label: str | None = None) -> float:
        """Mean of "dice", "nsd" or "hd95_mm" over the cases of a class, or of the class means; NaN if none counts.

        A case counts unless prediction and reference are both empty.
        """
        if label is None:
            return _mean(self.mean(metric, name) for name in self.labels)
        return _mean(getattr(s, metric) for s in self.scores if s.label == label)

    def counts(self, label: str) -> dict[str, int]:
        """Cases per state ("ok", "missed", "false_positive", "both_empty") of a class."""
        states = [s.state for s in self.scores if s.label == label]
        return {state: states.count(state) for state in ("ok", "missed", "false_positive", "both_empty")}

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        per_class = {
            name: {m: _plain(self.mean(m, name)) for m in METRICS} | {"cases": self.counts(name)}
            for name in self.labels
        }
        return {
            "labels": self.labels,
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "mean": {m: _plain(self.mean(m)) for m in METRICS},
            "classes": per_class,
            "scores": [{key: _plain(value) for key, value in asdict(s).items()} for s in self.scores],
        }


def _mean(values: Iterable[float]) -> float:
    counted = [v for v in values if not math.isnan(v)]
    return sum(counted) / len(counted) if counted else math.nan


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(config: EvaluateConfig) -> Evaluation:
    """Scores prediction against reference, prints the table and writes the files asked for.

    Raises:
        UserError: a file is missing or unusable, grids differ, or an output exists.
    """
    if not (math.isfinite(config.nsd_tolerance_mm) and config.nsd_tolerance_mm >= 0):
        raise UserError(f"nsd_tolerance_mm: {config.nsd_tolerance_mm} is not a distance; give 0 or more, in mm")
    outputs = [path for path in (config.output_json, config.output_csv) if path is not None]
    pairs = find_pairs(config.prediction, config.reference)
    for path in outputs:
        check_free(path, config.overwrite, [file for pair in pairs for file in pair])
    described = None if config.labels else read_dataset_labels(config.reference)
    evaluation = evaluate_pairs(pairs, config.labels or described, config.nsd_tolerance_mm, described is not None)
    print_table(evaluation)
    if config.output_json is not None:
        write_bytes(config.output_json, json.dumps(evaluation.to_json(), indent=2) + "\n")
    if config.output_csv is not None:
        write_bytes(config.output_csv, to_csv(evaluation))
    return evaluation


def find_pairs(prediction: Path, reference: Path) -> list[tuple[Path, Path]]:
    """(prediction, reference) files: the two given, or those of the same case name in two folders.

    Raises:
        UserError: something is missing; a reference without a prediction is an error, not a case left out.
    """
    if reference.is_file() and prediction.is_file():
        return [(prediction, reference)]
    for path in (prediction, reference):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
    if not (reference.is_dir() and prediction.is_dir()):
        raise UserError(f"{prediction} and {reference}: one is a file, the other a folder; give two of a kind")
    references, predictions = _nifti(reference), _nifti(prediction)
    if not references:
        raise UserError(f"{reference}: 0 NIfTI files found; give the folder with the reference label maps")
    missing = sorted(set(references) - set(predictions))
    if missing:
        raise UserError(
            f"{prediction}: {len(missing)} reference case(s) have no prediction: {missing}; predict them too"
        )
    return [(predictions[name], references[name]) for name in references]


def _nifti(folder: Path) -> dict[str, Path]:
    files = (p for p in sorted(folder.iterdir()) if p.name.lower().endswith((".nii", ".nii.gz")))
    return {strip_ending(p): p for p in files}


def evaluate_pairs(
    pairs: list[tuple[Path, Path]],
    labels: dict[str, int] | None = None,
    nsd_tolerance_mm: float = 1.0,
    complete: bool = False,
) -> Evaluation:
    """Scores (prediction, reference) files.

    Args:
        pairs: the files.
        labels: name to id of the classes to score; None: every non-zero id in any file, as "label_ID".
        nsd_tolerance_mm: see `Evaluation`.
        complete: `labels` are all there are, so that other ids in a file are an error.

    Raises:
        UserError: see `run`.
    """
    if labels is None:
        found = {int(i) for pair in pairs for path in pair for i in np.unique(read_label_map(path)[0])}
        labels = {f"label_{i}": i for i in sorted(found)}
    classes = {name: i for name, i in labels.items() if i != 0}
    if not classes:
        raise UserError(f'labels: {labels} names no class but background; give for example {{"liver": 1}}')
    scores: list[Score] = []
    for prediction_path, reference_path in pairs:
        ids = [0, *classes.values()] if complete else None
        reference, grid = read_label_map(reference_path, ids)
        prediction, _ = read_label_map(prediction_path, ids, grid)
        case = strip_ending(reference_path)
        scores += score_masks(prediction, reference, classes, grid.spacing_mm, nsd_tolerance_mm, case)
    return Evaluation(tuple(scores), classes, nsd_tolerance_mm)


def to_csv(evaluation: Evaluation) -> str:
    """One line per case and class; empty cells for NaN."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    for score in evaluation.scores:
        writer.writerow({key: "" if _plain(value) is None else value for key, value in asdict(score).items()})
    return text.getvalue()


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """Per case and class, then the means; cases with both masks empty are marked and not counted."""
    table = Table(title=f"Dice, NSD at {evaluation.nsd_tolerance_mm:g} mm, HD95 in mm, volumes in ml")
    for name in ("case", "class", "Dice", "NSD", "HD95", "predicted", "reference", "note"):
        table.add_column(name, justify="left" if name in ("case", "class", "note") else "right")
    for s in evaluation.scores:
        volumes = (f"{s.volume_prediction_ml:.2f}", f"{s.volume_reference_ml:.2f}")
        state = "" if s.state == "ok" else s.state.replace("_", " ")
        table.add_row(
            s.case, s.label, _number(s.dice, ".4f"), _number(s.nsd, ".4f"), _number(s.hd95_mm, ".2f"), *volumes, state
        )
    table.add_section()
    for label in (*evaluation.labels, None):
        means = [_number(evaluation.mean(m, label), f) for m, f in zip(METRICS, (".4f", ".4f", ".2f"), strict=True)]
        table.add_row("mean", label or "all classes", *means)
    (console or Console()).print(table)
