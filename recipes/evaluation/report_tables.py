"""Tables and facts of a report on trainings: scores with their spreads, single cases, time, settings without paths."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.pooling import Pool, Result
from ssmvision.recipes.evaluation.postprocessing import POSTPROCESSING, read_rule
from ssmvision.recipes.evaluation.runs import Run
from ssmvision.recipes.segmentation.report import Facts, Row, Table
from ssmvision.recipes.segmentation.report_parts import flatten
from ssmvision.recipes.segmentation.scores_table import number
from ssmvision.recipes.training.files import HISTORY, TIMES

__all__ = ["cases_table", "dice_table", "read_history", "rule_table", "runs_table", "scores_tables", "settings_of"]

EMPTY = (
    "A case counts unless neither prediction nor reference has the class. Where only one has it, Dice and NSD are 0, "
    "HD95 is the image's diagonal and the volume error 200 %."
)
# They differ between the trainings of a cross-validation and are columns of the table of trainings.
SHOWN_APART = ("trainer.seed", "data.fold", "resume", "overwrite")
# Settings that name files, folders or cases, and so may name people.
PRIVATE = ("root", "out", "plan", "config", "cache_dir", "validation_cases")


def dice_table(pool: Pool) -> Table:
    """Mean Dice per method and class, with the spreads of cases, folds and seeds apart."""
    rows = []
    for label in pool.labels:
        for method in pool.methods:
            s = pool.summary("dice", method, label)
            spreads = [number(sd, ".3f") for sd in (s.sd_cases, s.sd_folds, s.sd_seeds)]
            counts = [str(n) for n in (s.cases, s.folds, s.seeds)]
            cells = [text for pair in zip(spreads, counts, strict=True) for text in pair]
            rows.append(Row((label, method, number(s.mean, ".3f"), *cells)))
    columns = ("Class", "Method", "Dice", "sd of cases", "cases", "sd of folds", "folds", "sd of seeds", "seeds")
    caption = (
        f"Mean over cases; a case that several seeds predicted counts once, with their mean. Standard deviations "
        f"(n - 1): of the cases' Dice, of the folds' means, and of the seeds' means over the cases that all of them "
        f"predicted. {EMPTY}"
    )
    return Table("Dice of held-out cases", columns, tuple(rows), text_columns=2, group_by=1, caption=caption)


def scores_tables(pool: Pool) -> tuple[Table, ...]:
    """Surface and volume scores, then detection of lesions."""
    surface, lesions = [], []
    for label in pool.labels:
        tolerance = pool.rules.tolerances(pool.labels)[label]
        for method in pool.methods:
            means = [pool.summary(m, method, label).mean for m in ("nsd", "hd95_mm", "volume_error_ml")]
            percent = pool.summary("volume_error_percent", method, label).mean
            texts = [number(value, form) for value, form in zip(means, (".3f", ".2f", ".2f"), strict=True)]
            surface.append(Row((label, method, f"{tolerance:g}", *texts, number(percent, ".1f"))))
            found, results = pool.lesions(method, label), pool.of(method, label)
            per_case = found.false_positives / len(results) if results else math.nan
            counts = (str(found.found), str(found.reference), number(found.sensitivity, ".3f"))
            lesions.append(Row((label, method, *counts, number(per_case, ".2f"), number(found.f1, ".3f"))))
    names = ("Class", "Method")
    iou = pool.rules.lesion_iou
    rule = (
        "A lesion is found where any predicted voxel lies in it; a predicted component that touches none is a false "
        "positive."
        if iou == 0
        else f"Lesions and predicted components are paired one to one where intersection over union is {iou:g} or more."
    )
    return (
        Table(
            "Surfaces and volumes",
            (*names, "Tolerance, mm", "NSD", "HD95, mm", "Volume error, ml", "Volume error, %"),
            tuple(surface),
            text_columns=2,
            group_by=1,
            caption="Means over cases, of volume errors the size; % of the mean of both volumes, at most 200.",
        ),
        Table(
            "Detection of connected components",
            (*names, "Found", "of", "Sensitivity", "False positives per case", "F1"),
            tuple(lesions),
            text_columns=2,
            group_by=1,
            caption=f"Components of 26 neighbours, counted over all cases and trainings. {rule}",
            folded=True,
        ),
    )


def cases_table(pool: Pool, shown: Mapping[str, str]) -> Table:
    """Every score, the lowest Dice first; `shown` names the cases."""

    def order(result: Result) -> tuple[str, float]:
        dice = result.score.dice
        return result.score.label, math.inf if math.isnan(dice) else dice

    rows = []
    for r in sorted(pool.results, key=order):
        s = r.score
        scores = (number(s.dice, ".3f"), number(s.nsd, ".3f"), number(s.hd95_mm, ".1f"))
        volumes = (f"{s.volume_prediction_ml:.2f}", f"{s.volume_reference_ml:.2f}")
        state = "" if s.state == "ok" else s.state.replace("_", " ")
        rows.append(Row((s.label, shown[s.case], r.method, r.fold, str(r.seed), state, *scores, *volumes)))
    columns = (
        "Class",
        "Case",
        "Method",
        "Fold",
        "Seed",
        "Note",
        "Dice",
        "NSD",
        "HD95, mm",
        "Volume, ml",
        "Reference, ml",
    )
    return Table("All cases", columns, tuple(rows), text_columns=6, group_by=1, folded=True)


def rule_table(runs: Sequence[Run]) -> Table | None:
    """What `ssmvision postprocess` decided on these runs; None where it was not run on all of them, or differently.

    Raises:
        UserError: a rule's file is unusable.
    """
    paths = [run.folder / POSTPROCESSING for run in runs]
    if not all(path.is_file() for path in paths):
        return None
    rules = [read_rule(path, run.labels) for path, run in zip(paths, runs, strict=True)]
    decided = {(rule.foreground, rule.classes, rule.models) for rule in rules}
    if len(decided) > 1 or {run.digest for run in runs} != set(rules[0].models):
        return None
    rows = [
        Row((name, number(dice["before"], ".3f"), number(dice["after"], ".3f"))) for name, dice in rules[0].dice.items()
    ]
    caption = (
        f"Decided on {rules[0].cases} held-out predictions: prediction {rules[0]}. The Dice after it is of the same "
        "cases that decided it, so that the gain is not one on unseen cases. All other tables are without it."
    )
    return Table(
        "Post-processing", ("Class", "Dice, as predicted", "Dice, after the rule"), tuple(rows), caption=caption
    )


def read_history(run: Run) -> list[dict[str, float]]:
    """What a run noted of each epoch, its time included; NaN for what an epoch did not measure.

    Raises:
        UserError: a file is missing or damaged.
    """
    rows, times = (_read_numbers(run.folder / name) for name in (HISTORY, TIMES))
    seconds = {row["epoch"]: row["seconds"] for row in times}
    return [row | {"seconds": seconds.get(row["epoch"], math.nan)} for row in rows]


def _read_numbers(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [{key: float(value) if value else math.nan for key, value in row.items()} for row in rows]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: could not be read ({error}); restore the file that the training wrote") from None


def runs_table(
    runs: Sequence[Run], methods: Sequence[str], folds: Sequence[str], histories: Sequence[list[dict[str, float]]]
) -> Table:
    """Length and time of each training."""
    rows = []
    for i, (run, method, fold, history) in enumerate(zip(runs, methods, folds, histories, strict=True), 1):
        epochs, steps = len(history), history[-1].get("step", math.nan) if history else math.nan
        seconds = history[-1].get("seconds", math.nan) if history else math.nan
        numbers = (
            str(len(run.split.training)),
            str(epochs),
            number(steps, ".0f"),
            number(seconds / 60, ".1f"),
            number(1000 * seconds / steps if steps else math.nan, ".0f"),
        )
        rows.append(Row((f"run {i}", method, fold, str(run.seed), *numbers)))
    columns = ("Run", "Method", "Fold", "Seed", "Cases", "Epochs", "Steps", "Minutes", "ms per step")
    caption = "Time from start to end, validations included."
    return Table("Trainings", columns, tuple(rows), text_columns=4, caption=caption)


def settings_of(runs: Sequence[Run]) -> tuple[Facts, ...]:
    """Settings that all trainings share, those that differ, and versions; no paths, which may name people."""
    flat = [_public(flatten(run.settings)) for run in runs]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    shared = tuple((key, flat[0][key]) for key in keys if all(v.get(key) == flat[0].get(key) for v in flat))
    differing = []
    for key in (key for key in keys if key not in dict(shared)):
        users: dict[str, list[str]] = {}
        for i, values in enumerate(flat, 1):
            users.setdefault(values.get(key, "-"), []).append(str(i))
        differing.append((key, "; ".join(f"{value} (run {', '.join(who)})" for value, who in users.items())))
    facts = [Facts("Settings of all trainings", shared, folded=True)]
    if differing:
        facts.insert(0, Facts("Settings that differ", tuple(differing)))
    versions: dict[str, Any] = runs[0].card.get("versions", {})
    return (*facts, Facts("Versions of the first training", tuple((k, str(v)) for k, v in versions.items())))


def _public(settings: Iterable[tuple[str, str]]) -> dict[str, str]:
    named = ((key, value) for key, value in settings if key not in SHOWN_APART and key.split(".")[-1] not in PRIVATE)
    return {key: "a path, not shown" if "/" in value or "\\" in value else value for key, value in named}
