"""Scores of a classifier: over all pictures, by class, and how far its confidence can be trusted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)

__all__ = ["Bin", "ClassScore", "Outcome", "Roc", "Scores", "calibration", "of_volumes", "roc", "score"]

TOP = 5


@dataclass(frozen=True)
class Outcome:
    """What a classifier said of pictures.

    Args:
        labels: (N,) right classes.
        probabilities: (N, classes).
        classes: names.
        pictures: names of the pictures.
        volumes: names of the volumes that the pictures are slices of; None: no two are of one.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    classes: tuple[str, ...]
    pictures: tuple[str, ...]
    volumes: tuple[str, ...] | None = None

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N,) most probable classes."""
        return np.asarray(self.probabilities.argmax(1), dtype=np.int64)

    @property
    def confidence(self) -> NDArray[np.float64]:
        """(N,) their probabilities."""
        return np.asarray(self.probabilities.max(1), dtype=np.float64)


def of_volumes(outcome: Outcome) -> Outcome | None:
    """The mean probabilities over the slices of each volume; None where no two pictures are of one."""
    if outcome.volumes is None:
        return None
    numbers = {name: i for i, name in enumerate(dict.fromkeys(outcome.volumes))}
    volume = np.asarray([numbers[name] for name in outcome.volumes])
    first = np.unique(volume, return_index=True)[1]
    sums = np.zeros((len(numbers), outcome.probabilities.shape[1]))
    np.add.at(sums, volume, outcome.probabilities)
    means = sums / np.bincount(volume)[:, None]
    return Outcome(outcome.labels[first], means, outcome.classes, tuple(numbers))


@dataclass(frozen=True)
class Bin:
    """Pictures whose confidence lies between two values.

    Attributes:
        low, high: the interval (low, high].
        count: pictures in it.
        confidence: their mean; NaN for none, as is `accuracy`.
        accuracy: share of them that is classified rightly.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class ClassScore:
    """One class against all others; NaN where it is not defined.

    Attributes:
        name: of the class.
        pictures: that are of it.
        sensitivity: share of them that is classified as it (recall).
        specificity: share of all others that is not.
        precision: share of the pictures classified as it that is of it.
        f1: harmonic mean of precision and sensitivity.
        auc: area under the ROC curve of its probability.
        average_precision: area under the precision-recall curve, as a sum over its steps.
    """

    name: str
    pictures: int
    sensitivity: float
    specificity: float
    precision: float
    f1: float
    auc: float
    average_precision: float


@dataclass(frozen=True)
class Roc:
    """ROC curve of one class against all others."""

    name: str
    false_positive: NDArray[np.float64]
    true_positive: NDArray[np.float64]
    auc: float


@dataclass(frozen=True)
class Scores:
    """Everything about an outcome.

    Attributes:
        pictures: scored.
        accuracy: share of them that is classified rightly.
        accuracy_95: Wilson's 95 % interval of it for this many pictures.
        top5: share of the pictures whose class is among the five most probable; None for five classes or fewer.
        balanced_accuracy: mean sensitivity of the classes that occur.
        macro_f1: mean F1 of the classes that occur.
        macro_auc: mean one-against-all area under the ROC curve of the classes that have one.
        log_loss: mean negative log probability of the right class.
        brier: mean squared distance of the probabilities from the right answer, summed over the classes, 0 to 2.
        ece: expected calibration error: mean distance of accuracy from confidence over the bins, by pictures.
        mce: largest such distance.
        confusion: [i][j] pictures of class i that were classified as j.
        classes: one score each.
        bins: of confidence.
    """

    pictures: int
    accuracy: float
    accuracy_95: tuple[float, float]
    top5: float | None
    balanced_accuracy: float
    macro_f1: float
    macro_auc: float
    log_loss: float
    brier: float
    ece: float
    mce: float
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[ClassScore, ...]
    bins: tuple[Bin, ...]


def calibration(outcome: Outcome, bins: int) -> tuple[Bin, ...]:
    """Confidence and accuracy in equal intervals of confidence (Guo et al., arXiv 1706.04599, section 2)."""
    right, confidence = outcome.predicted == outcome.labels, outcome.confidence
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    found = []
    for i in range(bins):
        inside = place == i
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (math.nan, math.nan)
        found.append(Bin(float(edges[i]), float(edges[i + 1]), count, *means))
    return tuple(found)


def roc(outcome: Outcome) -> tuple[Roc, ...]:
    """ROC curves of the classes of which there are pictures, and pictures of others."""
    curves = []
    for i, name in enumerate(outcome.classes):
        truth = outcome.labels == i
        if truth.any() and not truth.all():
            false, true, _ = roc_curve(truth, outcome.probabilities[:, i])
            curves.append(Roc(name, false, true, float(roc_auc_score(truth, outcome.probabilities[:, i]))))
    return tuple(curves)


def score(outcome: Outcome, bins: int = 15) -> Scores:
    """All scores.

    Args:
        outcome: of at least one picture.
        bins: intervals of confidence.
    """
    labels, predicted, p = outcome.labels, outcome.predicted, outcome.probabilities
    count, kinds = len(labels), list(range(len(outcome.classes)))
    right = int((labels == predicted).sum())
    interval = binomtest(right, count).proportion_ci(method="wilson")
    matrix = confusion_matrix(labels, predicted, labels=kinds)
    classes = _classes(outcome, matrix)
    present = [one for one in classes if one.pictures]
    found = calibration(outcome, bins)
    gaps = [(one.count, abs(one.accuracy - one.confidence)) for one in found if one.count]
    aucs = [one.auc for one in classes if not math.isnan(one.auc)]
    return Scores(
        pictures=count,
        accuracy=right / count,
        accuracy_95=(float(interval.low), float(interval.high)),
        top5=float(top_k_accuracy_score(labels, p, k=TOP, labels=kinds)) if len(kinds) > TOP else None,
        balanced_accuracy=float(np.mean([one.sensitivity for one in present])),
        macro_f1=float(np.mean([one.f1 for one in present])),
        macro_auc=float(np.mean(aucs)) if aucs else math.nan,
        log_loss=float(log_loss(labels, p / p.sum(1, keepdims=True), labels=kinds)),
        brier=float(((p - np.eye(len(kinds))[labels]) ** 2).sum(1).mean()),
        ece=sum(n * gap for n, gap in gaps) / count,
        mce=max(gap for _, gap in gaps),
        confusion=tuple(tuple(int(n) for n in row) for row in matrix),
        classes=classes,
        bins=found,
    )


def _classes(outcome: Outcome, matrix: NDArray[Any]) -> tuple[ClassScore, ...]:
    labels, p, kinds = outcome.labels, outcome.probabilities, list(range(len(outcome.classes)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, outcome.predicted, labels=kinds, zero_division=np.nan
    )
    rows = []
    for i, name in enumerate(outcome.classes):
        truth = labels == i
        others = len(labels) - int(support[i])
        wrongly = int(matrix[:, i].sum() - matrix[i, i])
        both = bool(truth.any() and not truth.all())
        rows.append(
            ClassScore(
                name=name,
                pictures=int(support[i]),
                sensitivity=float(recall[i]),
                specificity=1 - wrongly / others if others else math.nan,
                precision=float(precision[i]),
                f1=float(f1[i]),
                auc=float(roc_auc_score(truth, p[:, i])) if both else math.nan,
                average_precision=float(average_precision_score(truth, p[:, i])) if truth.any() else math.nan,
            )
        )
    return tuple(rows)
