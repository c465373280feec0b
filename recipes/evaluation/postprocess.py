"""Decides the largest-component rule on the held-out predictions of trainings, and leaves it in their run folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.config import PostprocessConfig
from ssmvision.recipes.evaluation.postprocessing import POSTPROCESSING, Labels, Postprocessing, decide, write_rule
from ssmvision.recipes.evaluation.runs import Run, open_runs
from ssmvision.recipes.segmentation.datalist import Case
from ssmvision.recipes.segmentation.scores_table import number, scores_console, scores_grid
from ssmvision.recipes.segmentation.volumes import read_label_map
from ssmvision.recipes.segmentation.writing import check_free

__all__ = ["run"]


def run(config: PostprocessConfig) -> Postprocessing:
    """Decides the rule, writes it into every run folder, and prints what it changes.

    Raises:
        UserError: a run was not validated, or on other weights, or with failures; a file is unusable; or an earlier
            decision exists.
    """
    runs = open_runs(config.runs)
    outputs = [run.folder / POSTPROCESSING for run in runs] + ([config.out] if config.out is not None else [])
    for path in outputs:
        check_free(path, config.overwrite)
    for one in runs:
        _check_validated(one)
    held_out = [(one, case) for one in runs for case in one.held_out(config.data)]
    rule = decide(_pairs(held_out), runs[0].labels)
    rule = replace(rule, models=tuple(one.digest for one in runs))
    for path in outputs:
        write_rule(path, rule)
    _print(rule, outputs)
    return rule


def _check_validated(run: Run) -> None:
    if not run.unseen:
        raise UserError(f"{run.folder}: its held-out cases were trained on (fold all); decide on the folds 0 to n - 1")
    failed = run.evaluation().failed
    if failed:
        raise UserError(
            f"{run.folder}: {len(failed)} held-out case(s) have no scores: {sorted(failed)}; mend them and run "
            f"`ssmvision validate {run.folder}` again"
        )


def _pairs(held_out: Sequence[tuple[Run, Case]]) -> Iterator[tuple[Labels, Labels]]:
    for run, case in held_out:
        assert case.label is not None  # training cases have one
        ids = list(run.labels.values())
        reference, grid = read_label_map(case.label, ids)
        prediction, _ = read_label_map(run.prediction(case.id), ids, grid)
        yield prediction, reference


def _print(rule: Postprocessing, outputs: Sequence[Path]) -> None:
    columns = ("class", "as predicted", "after the rule", "largest component only")
    table = scores_grid(columns, f"Mean Dice of {rule.cases} held-out prediction(s)", "")
    for name, dice in rule.dice.items():
        own = "yes" if name in rule.classes else "with all classes together" if rule.foreground else "no"
        table.add_row(name, number(dice["before"], ".4f"), number(dice["after"], ".4f"), own)
    scores_console().print(table)
    console = Console(stderr=True)
    console.print(f"decided   {rule}", markup=False, highlight=False, soft_wrap=True)
    for path in outputs:
        console.print(f"wrote     {path}", markup=False, highlight=False, soft_wrap=True)
    told = "`ssmvision predict` with these runs applies it and says so; --postprocessing none turns it off"
    console.print(told, markup=False, highlight=False, soft_wrap=True)
