"""Scores of many cases: how they were taken, their means, and the files that keep them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.lesions import Lesions
from ssmvision.recipes.segmentation.metrics import COLUMNS, Score, score_from_row

__all__ = ["METRICS", "Evaluation", "Rules", "plain", "to_csv"]

METRICS = ("dice", "nsd", "hd95_mm", "volume_error_ml", "volume_error_percent")


@dataclass(frozen=True)
class Rules:
    """How masks are compared.

    Args:
        nsd_tolerance_mm: distance up to which surfaces agree.
        nsd_tolerances_mm: the same of single classes, where it differs.
        lesion_iou: see `lesions.detect`.
    """

    nsd_tolerance_mm: float = 1.0
    nsd_tolerances_mm: Mapping[str, float] = field(default_factory=dict)
    lesion_iou: float = 0.0

    def __post_init__(self) -> None:
        named = {"nsd_tolerance_mm": self.nsd_tolerance_mm}
        named |= {f"nsd_tolerances_mm.{name}": value for name, value in self.nsd_tolerances_mm.items()}
        for name, value in named.items():
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name}: {value} is not a distance; give 0 or more, in mm")
        if not 0 <= self.lesion_iou <= 1:
            raise UserError(f"lesion_iou: {self.lesion_iou} is not a share; give 0 (any overlap) to 1")

    def tolerances(self, labels: Iterable[str]) -> dict[str, float]:
        """The tolerance of each class.

        Raises:
            UserError: one is set for a class that there is not.
        """
        labels = list(labels)
        unknown = sorted(set(self.nsd_tolerances_mm) - set(labels))
        if unknown:
            raise UserError(f"nsd_tolerances_mm: {unknown} not among the classes {labels}; correct the name")
        return {name: self.nsd_tolerances_mm.get(name, self.nsd_tolerance_mm) for name in labels}


@dataclass(frozen=True)
class Evaluation:
    """Scores of all cases and classes.

    Args:
        scores: one per case and class.
        labels: name to id, background left out.
        nsd_tolerance_mm: of the NSD column, where a class has none of its own in `rules`.
        rules: how the masks were compared; None: the defaults with that tolerance.
        failed: what went wrong, by case; these cases have no scores.
        notes: what is odd about a case.
    """

    scores: tuple[Score, ...]
    labels: dict[str, int]
    nsd_tolerance_mm: float
    rules: Rules | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def tolerances(self) -> dict[str, float]:
        """NSD tolerance of each class."""
        return (self.rules or Rules(self.nsd_tolerance_mm)).tolerances(self.labels)

    def values(self, metric: str, label: str) -> list[float]:
        """A metric's values, one per case that counts; of volume errors the size.

        A case counts unless prediction and reference are both empty.
        """
        scores = [s for s in self.scores if s.label == label and s.state != "both_empty"]
        return [abs(float(getattr(s, metric))) for s in scores]

    def mean(self, metric: str, label: str | None = None) -> float:
        """Mean of one of `METRICS` over the cases of a class, or of the class means; NaN if none counts."""
        if label is None:
            return _mean(self.mean(metric, name) for name in self.labels)
        return _mean(self.values(metric, label))

    def sd(self, metric: str, label: str) -> float:
        """Standard deviation over the cases (n - 1); NaN for fewer than two."""
        values = self.values(metric, label)
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def counts(self, label: str) -> dict[str, int]:
        """Cases per state ("ok", "missed", "false_positive", "both_empty") of a class."""
        states = [s.state for s in self.scores if s.label == label]
        return {state: states.count(state) for state in ("ok", "missed", "false_positive", "both_empty")}

    def lesions(self, label: str) -> Lesions:
        """Counts of a class over all cases."""
        return sum((s.lesions for s in self.scores if s.label == label), Lesions())

    def detection(self, label: str) -> dict[str, float]:
        """Sensitivity and F1 over all lesions of a class, and false positives per case."""
        found, cases = self.lesions(label), sum(s.label == label for s in self.scores)
        per_case = found.false_positives / cases if cases else math.nan
        return {"sensitivity": found.sensitivity, "false_positives_per_case": per_case, "f1": found.f1}

    def to_json(self) -> dict[str, Any]:
        """Plain values; NaN becomes None."""
        rules = self.rules or Rules(self.nsd_tolerance_mm)
        return {
            "labels": self.labels,
            "nsd_tolerance_mm": self.nsd_tolerance_mm,
            "nsd_tolerances_mm": self.tolerances,
            "lesion_iou": rules.lesion_iou,
            "mean": {m: plain(self.mean(m)) for m in METRICS},
            "classes": {name: self._class_json(name) for name in self.labels},
            "failed": dict(self.failed),
            "notes": list(self.notes),
            "scores": [{key: plain(value) for key, value in s.row().items()} for s in self.scores],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        tolerances = {name: float(value) for name, value in content["nsd_tolerances_mm"].items()}
        rules = Rules(float(content["nsd_tolerance_mm"]), tolerances, float(content["lesion_iou"]))
        scores = tuple(score_from_row(row) for row in content["scores"])
        failed, notes = dict(content["failed"]), tuple(content["notes"])
        return cls(scores, dict(content["labels"]), rules.nsd_tolerance_mm, rules, failed, notes)

    def _class_json(self, label: str) -> dict[str, Any]:
        return {
            **{m: plain(self.mean(m, label)) for m in METRICS},
            "sd": {m: plain(self.sd(m, label)) for m in METRICS},
            "lesions": {name: plain(value) for name, value in self.detection(label).items()},
            "cases": self.counts(label),
        }


def _mean(values: Iterable[float]) -> float:
    counted = [v for v in values if not math.isnan(v)]
    return sum(counted) / len(counted) if counted else math.nan


def plain(value: Any) -> Any:
    """A value for JSON or CSV: None for a number that is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(evaluation: Evaluation) -> str:
    """One line per case and class; empty cells for NaN."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for score in evaluation.scores:
        writer.writerow({key: "" if plain(value) is None else value for key, value in score.row().items()})
    return text.getvalue()
