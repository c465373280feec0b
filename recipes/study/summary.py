"""The scores of a study as tables: per fold and class, with mean and spread over the seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssmvision.recipes.segmentation.metrics import Score
from ssmvision.recipes.study.cost import Cost
from ssmvision.recipes.study.tables import difference, spread, table

__all__ = ["Result", "Study", "differences", "markdown", "mean_score", "to_csv"]

METRICS = {"dice": ("Dice", 3), "nsd": ("surface Dice", 3), "hd95_mm": ("HD95, mm", 1)}


@dataclass(frozen=True)
class Result:
    """One finished training.

    Args:
        network, fold, seed: which.
        scores: of every case held out and class.
        steps: optimiser steps.
        seconds: of the training, over all its starts, other trainings running beside it or not.
    """

    network: str
    fold: int
    seed: int
    scores: tuple[Score, ...]
    steps: int
    seconds: float


@dataclass(frozen=True)
class Study:
    """Everything that the report tells.

    Args:
        networks: names, the one to compare with first.
        folds: ids of the cases held out.
        classes: names without background.
        results: of the trainings that are finished.
        rules: scores without training, by rule.
        costs: by network.
    """

    networks: tuple[str, ...]
    folds: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    results: tuple[Result, ...]
    rules: Mapping[str, Sequence[Score]]
    costs: Mapping[str, Cost]

    def values(self, network: str, metric: str, fold: int | None = None, label: str | None = None) -> list[float]:
        """One number per seed that has finished all folds asked for: the mean over the classes' means over cases."""
        wanted = range(len(self.folds)) if fold is None else [fold]
        found = {(r.seed, r.fold): r.scores for r in self.results if r.network == network}
        values = []
        for seed in dict.fromkeys(seed for seed, _ in found):
            if all((seed, i) in found for i in wanted):
                values.append(mean_score([s for i in wanted for s in found[seed, i]], metric, label))
        return [v for v in values if not math.isnan(v)]


def mean_score(scores: Sequence[Score], metric: str, label: str | None = None) -> float:
    """Mean over the cases of a class, or of all the classes' means; cases with both masks empty do not count."""
    if label is None:
        return _mean([mean_score(scores, metric, name) for name in dict.fromkeys(s.label for s in scores)])
    return _mean([getattr(s, metric) for s in scores if s.label == label])


def _mean(values: Sequence[float]) -> float:
    counted = [v for v in values if not math.isnan(v)]
    return statistics.fmean(counted) if counted else math.nan


def markdown(study: Study) -> str:
    """All tables of the report."""
    parts = []
    for metric, (title, digits) in METRICS.items():
        heads = [f"fold {i}: {', '.join(fold)}" for i, fold in enumerate(study.folds)]
        rows = []
        for network in study.networks:
            cells = [spread(study.values(network, metric, i), digits) for i in range(len(study.folds))]
            rows.append([network, *cells, spread(study.values(network, metric), digits)])
        rows += [[rule, *_rule_cells(study, scores, metric, digits)] for rule, scores in study.rules.items()]
        parts.append(f"### {title} per fold\n\n" + table(["", *heads, "all cases"], rows))
    if len(study.classes) > 1:
        parts.append("### Dice per class, all folds\n\n" + _class_table(study))
    if len(study.networks) > 1:
        parts.append(f"### Dice minus that of {study.networks[0]}\n\n" + _difference_table(study))
    parts.append("### Cost\n\n" + _cost_table(study))
    return "\n\n".join(parts) + "\n"


def _rule_cells(study: Study, scores: Sequence[Score], metric: str, digits: int) -> list[str]:
    parts = [[s for s in scores if s.case in fold] for fold in study.folds]
    return [_rule_cell(part, metric, digits) for part in (*parts, scores)]


def _rule_cell(scores: Sequence[Score], metric: str, digits: int = 3, label: str | None = None) -> str:
    mean = mean_score(scores, metric, label)
    return spread([] if math.isnan(mean) else [mean], digits)


def _class_table(study: Study) -> str:
    rows = [
        [label, *(spread(study.values(network, "dice", None, label)) for network in study.networks)]
        + [_rule_cell(scores, "dice", label=label) for scores in study.rules.values()]
        for label in study.classes
    ]
    return table(["", *study.networks, *study.rules], rows)


def differences(study: Study, network: str, fold: int) -> tuple[float, float] | None:
    """`difference` of the mean Dice to that of the first network on a fold."""
    return difference(*(study.values(name, "dice", fold) for name in (network, study.networks[0])))


def _difference_table(study: Study) -> str:
    rows = []
    for network in study.networks[1:]:
        found = [differences(study, network, i) for i in range(len(study.folds))]
        rows.append([network, *("-" if d is None else f"{d[0]:+.3f} ± {d[1]:.3f}" for d in found)])
    return table(["", *(f"fold {i}" for i in range(len(study.folds)))], rows)


def _cost_table(study: Study) -> str:
    rows = []
    for network, cost in study.costs.items():
        mine = [r for r in study.results if r.network == network]
        memory = "-" if cost.memory_gb is None else f"{cost.memory_gb:.2f}"
        seconds = spread([r.seconds for r in mine], 0)
        rows.append([network, f"{cost.parameters:,}", f"{cost.step_ms:.1f}", memory, seconds, str(len(mine))])
    heads = ["", "parameters", "ms per step, alone", "peak memory, GB", "s per training, beside others", "trainings"]
    return table(heads, rows)


def to_csv(study: Study) -> str:
    """One line per network, fold, seed, case and class; empty cells for NaN."""
    lines: list[tuple[Any, ...]] = [(r.network, r.fold, r.seed, s) for r in study.results for s in r.scores]
    lines += [(rule, "", "", s) for rule, scores in study.rules.items() for s in scores]
    rows = [{"network": network, "fold": fold, "seed": seed, **score.row()} for network, fold, seed, score in lines]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()})
    return text.getvalue()
