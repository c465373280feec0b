"""Writes the report on trainings: one HTML file for people, CSV and JSON beside it for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.config import ReportConfig
from ssmvision.recipes.evaluation.pictures import contours_png, distributions_png, training_png
from ssmvision.recipes.evaluation.pooling import Pool, Result, folds_of, pool, pooled_csv, pooled_json, print_summary
from ssmvision.recipes.evaluation.report_tables import (
    cases_table,
    dice_table,
    read_history,
    rule_table,
    runs_table,
    scores_tables,
    settings_of,
)
from ssmvision.recipes.evaluation.runs import Run, open_runs
from ssmvision.recipes.segmentation.datalist import Case
from ssmvision.recipes.segmentation.report import Highlight, Picture, Report, write_report
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map
from ssmvision.recipes.segmentation.writing import check_free, write_bytes

__all__ = ["run"]

CURVES = (
    "Training. Each line is one training; its Dice is that of whole held-out cases, measured while training, and may "
    "have chosen the epoch whose weights were kept."
)
ENDINGS = (".html", ".csv", ".json")


@dataclass(frozen=True)
class Material:
    """What a report is made of.

    Args:
        runs: the trainings.
        pooled: their scores.
        histories: rows of metrics.csv of each.
        shown: name of each case in the report.
    """

    runs: tuple[Run, ...]
    pooled: Pool
    histories: tuple[list[dict[str, float]], ...]
    shown: dict[str, str]

    @property
    def methods(self) -> list[str]:
        """Of each training."""
        names = {result.number: result.method for result in self.pooled.results}
        return [names.get(i, run.network) for i, run in enumerate(self.runs, 1)]


def run(config: ReportConfig) -> Path:
    """Writes the report and returns its path.

    Raises:
        UserError: a run was not validated, the runs cannot be compared, an image for a picture is not there, or an
            output exists.
    """
    outputs = [config.out.with_suffix(ending) for ending in ENDINGS]
    if config.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out: {config.out} does not end in .html; CSV and JSON go beside it under the same name")
    if config.pictures < 0:
        raise UserError(f"pictures: {config.pictures} is not possible; give 0 or more")
    for path in (config.out, *outputs[1:]):
        check_free(path, config.overwrite)
    runs = open_runs(config.runs)
    pooled = pool(runs, [one.evaluation() for one in runs], config.names)
    if not pooled.results:
        raise UserError(f"{runs[0].folder}: no held-out case has scores; see what `ssmvision validate` said")
    material = Material(
        tuple(runs), pooled, tuple(read_history(one) for one in runs), _case_names(runs, config.case_names)
    )
    report = _report(material, _figures(material, config))
    write_report(config.out, report, config.overwrite)
    write_bytes(outputs[1], pooled_csv(pooled))
    numbered = {"runs": {f"run {i}": one.name for i, one in enumerate(runs, 1)}, "cases": material.shown}
    write_bytes(outputs[2], json.dumps(pooled_json(pooled) | {"names_in_the_report": numbered}, indent=2) + "\n")
    print_summary(pooled)
    console = Console(stderr=True)
    for path in (config.out, *outputs[1:]):
        console.print(f"wrote     {path}", markup=False, highlight=False, soft_wrap=True)
    return config.out


def _case_names(runs: Sequence[Run], as_they_are: bool) -> dict[str, str]:
    """Numbers for the cases: their ids are file names, which may name people."""
    ids = sorted({case for run in runs for case in run.split.validation})
    return {case: case if as_they_are else f"case {i}" for i, case in enumerate(ids, 1)}


def _report(material: Material, figures: tuple[Picture, ...]) -> Report:
    runs, pooled = material.runs, material.pooled
    cases = len({result.score.case for result in pooled.results})
    rule = rule_table(runs)
    folds, seeds = len(set(folds_of(runs))), len({run.seed for run in runs})
    return Report(
        title=f"Segmentation of {_listed(list(pooled.labels))}",
        summary=(
            f"{_count(len(runs), 'training')} of {_count(len(pooled.methods), 'network')}: "
            f"{_count(folds, 'set')} of held-out cases, {_count(seeds, 'seed')}, {_count(cases, 'case')} scored. "
            "Every prediction is by a network that did not train on the case, without post-processing, unless said "
            "otherwise below."
        ),
        notices=_notices(material),
        highlights=tuple(
            Highlight(f"{pooled.mean('dice', method):.3f}", f"mean Dice, {method}") for method in pooled.methods[:4]
        ),
        tables=(
            dice_table(pooled),
            *scores_tables(pooled),
            *([rule] if rule is not None else []),
            runs_table(runs, material.methods, folds_of(runs), material.histories),
            cases_table(pooled, material.shown),
        ),
        figures=figures,
        command="ssmvision validate RUN [RUN ...]\nssmvision report RUN [RUN ...] --out report.html",
        facts=settings_of(runs),
    )


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _listed(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _notices(material: Material) -> tuple[str, ...]:
    runs, pooled, notices = material.runs, material.pooled, []
    seen = [f"run {i}" for i, run in enumerate(runs, 1) if not run.unseen]
    if seen:
        notices.append(f"The cases of {_listed(seen)} were trained on; their scores tell nothing of unseen cases.")
    if pooled.failed:
        failed = sorted({material.shown.get(case, case) for _, case, _ in pooled.failed})
        notices.append(
            f"{_count(len(pooled.failed), 'prediction')} could not be made or scored and are not in the means: "
            f"{', '.join(failed)}. The JSON file beside this one says why."
        )
    chosen = [f"run {i}" for i, run in enumerate(runs, 1) if run.chosen_on_held_out]
    if chosen:
        notices.append(
            f"In {_listed(chosen)} the held-out cases also chose the epoch whose weights were kept or when to stop; "
            "their scores are somewhat better than those of cases that nobody looked at."
        )
    single = [m for m in pooled.methods if len({r.seed for r in pooled.results if r.method == m}) == 1]
    if single:
        notices.append(f"One seed of {_listed(single)}: how far the scores depend on chance in training is not known.")
    sets = {method: {r.score.case for r in pooled.results if r.method == method} for method in pooled.methods}
    if len({frozenset(cases) for cases in sets.values()}) > 1:
        counts = ", ".join(f"{method}: {len(cases)}" for method, cases in sets.items())
        notices.append(f"The methods were not scored on the same cases ({counts}); their means cannot be compared.")
    return tuple(notices)


def _figures(material: Material, config: ReportConfig) -> tuple[Picture, ...]:
    distributions = Picture(
        distributions_png(material.pooled),
        "Every case and training: a point each; boxes show quartiles, whiskers reach 1.5 times the box.",
        "Dot and box plots of Dice, NSD and HD95 per class and method.",
    )
    rows = list(zip(material.methods, material.histories, strict=True))
    curves = (
        [Picture(training_png(rows), CURVES, "Line charts of loss and Dice by epoch.")]
        if any(r for _, r in rows)
        else []
    )
    return (distributions, *_worst(material, config), *curves)


def _worst(material: Material, config: ReportConfig) -> list[Picture]:
    """The cases with the lowest Dice of each method, a case once."""
    pictures: list[Picture] = []
    if config.pictures == 0:
        return pictures
    cases = [{case.id: case for case in run.held_out(config.data)} for run in material.runs]
    for method in material.pooled.methods:
        counted = [r for r in material.pooled.results if r.method == method and r.score.state != "both_empty"]
        lowest: dict[str, Result] = {}
        for result in sorted(counted, key=lambda r: r.score.dice):
            lowest.setdefault(result.score.case, result)
        for result in list(lowest.values())[: config.pictures]:
            place = result.number - 1
            pictures.append(_picture(material.runs[place], cases[place][result.score.case], result, material.shown))
    return pictures


def _picture(run: Run, case: Case, result: Result, shown: dict[str, str]) -> Picture:
    assert case.label is not None  # it has a score
    volume = read_image(case.images, tuple(run.card["channels"]))
    reference, _ = read_label_map(case.label, like=volume.grid)
    prediction, _ = read_label_map(run.prediction(case.id), like=volume.grid)
    s = result.score
    numbers = f"Dice {s.dice:.3f}, NSD {s.nsd:.3f}, HD95 {s.hd95_mm:.1f} mm"
    return Picture(
        contours_png(volume.data[0], volume.grid.affine, reference, prediction, run.labels),
        f"{shown[s.case]}, {result.method}, fold {result.fold}, seed {result.seed}: {s.label} has {numbers}. Slices "
        "through the largest error; the patient's right is on the left.",
        "Axial, coronal and sagittal slices with the outlines of the reference and of the prediction.",
    )
