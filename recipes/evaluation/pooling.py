"""Scores of several trainings together: means over cases, and spreads over cases, folds and seeds, kept apart."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.lesions import Lesions
from ssmvision.recipes.evaluation.runs import Run
from ssmvision.recipes.segmentation.metrics import COLUMNS, Score
from ssmvision.recipes.segmentation.scores import METRICS, Evaluation, Rules, plain
from ssmvision.recipes.segmentation.scores_table import number, scores_console, scores_grid

__all__ = ["Pool", "Result", "Summary", "folds_of", "pool", "pooled_csv", "pooled_json", "print_summary"]


@dataclass(frozen=True)
class Result:
    """A score and the training that it belongs to; `number` is the training's place among them, from 1."""

    number: int
    method: str
    run: str
    fold: str
    seed: int
    score: Score


@dataclass(frozen=True)
class Summary:
    """A metric of one method and class.

    Args:
        mean: over cases; a case that several seeds predicted counts once, with their mean.
        cases: how many.
        sd_cases: standard deviation over cases (n - 1), of those means.
        folds: how many.
        sd_folds: standard deviation of the folds' means.
        seeds: how many.
        sd_seeds: standard deviation of the seeds' means over the cases that all of them predicted.
    """

    mean: float
    cases: int
    sd_cases: float
    folds: int
    sd_folds: float
    seeds: int
    sd_seeds: float


@dataclass(frozen=True)
class Pool:
    """All scores of several trainings.

    Args:
        results: one per training, case and class.
        labels: name to id, background left out.
        rules: how the masks were compared.
        failed: run, case, and what went wrong there.
    """

    results: tuple[Result, ...]
    labels: dict[str, int]
    rules: Rules
    failed: tuple[tuple[str, str, str], ...]

    @property
    def methods(self) -> list[str]:
        """In the order of the runs."""
        return list(dict.fromkeys(result.method for result in self.results))

    def of(self, method: str, label: str) -> list[Result]:
        """Results of a method and class."""
        return [r for r in self.results if (r.method, r.score.label) == (method, label)]

    def summary(self, metric: str, method: str, label: str) -> Summary:
        """A metric (see `scores.METRICS`) of a method and class; of volume errors the size.

        Cases where neither prediction nor reference has the class do not count.
        """
        counted = [r for r in self.of(method, label) if r.score.state != "both_empty"]
        pairs = [(r, abs(float(getattr(r.score, metric)))) for r in counted]
        cases = _means(pairs, lambda r: r.score.case)
        folds = _means(pairs, lambda r: r.fold)
        seen = {seed: {r.score.case for r in counted if r.seed == seed} for seed in {r.seed for r in counted}}
        shared = set.intersection(*seen.values()) if seen else set()
        seeds = _means([pair for pair in pairs if pair[0].score.case in shared], lambda r: r.seed)
        mean = sum(cases) / len(cases) if cases else math.nan
        return Summary(mean, len(cases), _sd(cases), len(folds), _sd(folds), len(seen), _sd(seeds))

    def mean(self, metric: str, method: str) -> float:
        """Mean over the classes that count."""
        means = [self.summary(metric, method, label).mean for label in self.labels]
        counted = [m for m in means if not math.isnan(m)]
        return sum(counted) / len(counted) if counted else math.nan

    def lesions(self, method: str, label: str) -> Lesions:
        """Counts of a method and class over all cases and trainings."""
        return sum((r.score.lesions for r in self.of(method, label)), Lesions())


def _means(pairs: Iterable[tuple[Result, float]], key: Callable[[Result], Hashable]) -> list[float]:
    groups: dict[Hashable, list[float]] = {}
    for result, value in pairs:
        groups.setdefault(key(result), []).append(value)
    return [sum(values) / len(values) for values in groups.values()]


def _sd(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def pool(runs: Sequence[Run], evaluations: Sequence[Evaluation], names: Sequence[str] = ()) -> Pool:
    """Puts the scores of several trainings together.

    Args:
        runs: the trainings, all on the same labels.
        evaluations: of each.
        names: of the method of each; empty: the networks'.

    Raises:
        UserError: the number of names is wrong, masks were compared by different rules, or two runs are of the same
            method, seed and fold.
    """
    if names and len(names) != len(runs):
        raise UserError(f"names: {len(names)} given for {len(runs)} runs; give one for each run, or none")
    methods = list(names) or [run.network for run in runs]
    folds = folds_of(runs)
    first, taken, results, failed = evaluations[0], dict[Any, Run](), list[Result](), list[tuple[str, str, str]]()
    for i, (run, evaluation, method, fold) in enumerate(zip(runs, evaluations, methods, folds, strict=True), 1):
        if _compared(evaluation) != _compared(first):
            raise UserError(
                f"{run.scores_path}: NSD tolerance or lesion rule differ from those of {runs[0].scores_path}; "
                "run `ssmvision validate` on all of them with the same ones"
            )
        twin = taken.setdefault((method, fold, run.seed), run)
        if twin is not run:
            raise UserError(
                f"{run.folder}: {method}, fold {fold}, seed {run.seed} is also what {twin.folder} is; "
                "tell them apart by --names, one for each run"
            )
        results += [Result(i, method, run.name, fold, run.seed, score) for score in evaluation.scores]
        failed += [(run.name, case, told) for case, told in evaluation.failed.items()]
    return Pool(tuple(results), first.labels, first.rules or Rules(first.nsd_tolerance_mm), tuple(failed))


def _compared(evaluation: Evaluation) -> tuple[dict[str, float], float]:
    return evaluation.tolerances, evaluation.rules.lesion_iou if evaluation.rules else 0.0


def folds_of(runs: Sequence[Run]) -> list[str]:
    """A name for each run's held-out cases: the fold's number, else the set's."""
    numbered: dict[tuple[str, ...], str] = {}
    names = []
    for run in runs:
        fold = run.settings["data"].get("fold")
        if fold is None:
            names.append(numbered.setdefault(run.split.validation, f"set {len(numbered) + 1}"))
        else:
            names.append(str(fold))
    return names


def pooled_csv(pool: Pool) -> str:
    """One line per training, case and class; empty cells for NaN."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", "run", "fold", "seed", *COLUMNS))
    for r in pool.results:
        row = r.score.row()
        values = ("" if plain(row[name]) is None else row[name] for name in COLUMNS)
        writer.writerow((r.method, r.run, r.fold, r.seed, *values))
    return text.getvalue()


def pooled_json(pool: Pool) -> dict[str, Any]:
    """Summaries per method and class as plain values; NaN becomes None."""
    return {
        "labels": pool.labels,
        "nsd_tolerances_mm": pool.rules.tolerances(pool.labels),
        "lesion_iou": pool.rules.lesion_iou,
        "methods": {
            method: {
                "mean": {metric: plain(pool.mean(metric, method)) for metric in METRICS},
                "classes": {label: _class_json(pool, method, label) for label in pool.labels},
            }
            for method in pool.methods
        },
        "failed": [{"run": run, "case": case, "why": why} for run, case, why in pool.failed],
    }


def _class_json(pool: Pool, method: str, label: str) -> dict[str, Any]:
    lesions = pool.lesions(method, label)
    counts = {name: getattr(lesions, name) for name in ("reference", "found", "predicted", "false_positives")}
    summaries = {metric: pool.summary(metric, method, label) for metric in METRICS}
    return {
        **{metric: {key: plain(value) for key, value in vars(s).items()} for metric, s in summaries.items()},
        "lesions": counts | {"sensitivity": plain(lesions.sensitivity), "f1": plain(lesions.f1)},
    }


def print_summary(pool: Pool, console: Console | None = None) -> None:
    """Dice per method and class with its spreads, then NSD and HD95."""
    columns = ("method", "class", "cases", "Dice", "sd", "NSD", "HD95, mm")
    caption = "sd: of cases / of the folds' means / of the seeds' means, - for fewer than 2"
    table = scores_grid(columns, "Held-out cases", caption)
    for method in pool.methods:
        for label in pool.labels:
            dice = pool.summary("dice", method, label)
            spreads = " / ".join(number(sd, ".4f") for sd in (dice.sd_cases, dice.sd_folds, dice.sd_seeds))
            nsd, hd95 = (pool.summary(metric, method, label).mean for metric in ("nsd", "hd95_mm"))
            numbers = (number(dice.mean, ".4f"), spreads, number(nsd, ".4f"), number(hd95, ".2f"))
            table.add_row(method, label, str(dice.cases), *numbers)
    (console or scores_console()).print(table)
