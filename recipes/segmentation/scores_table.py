"""The tables of scores that commands print."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ssmvision.recipes.segmentation.scores import Evaluation

__all__ = ["number", "print_table", "scores_console", "scores_grid"]

# Of output that goes to a file or a pipe, where there is no screen whose width counts.
FILE_WIDTH = 120
TEXT = ("case", "class", "method", "note")
COLUMNS = ("case", "class", "Dice", "NSD", "HD95", "volumes", "error %", "lesions")
MEANS = (("dice", ".4f"), ("nsd", ".4f"), ("hd95_mm", ".2f"))


def number(value: float, form: str) -> str:
    """A formatted number, or "-" for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def scores_console() -> Console:
    """Standard output, wide enough for a row of scores where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(FILE_WIDTH, console.width))


def scores_grid(columns: tuple[str, ...], title: str, caption: str) -> Table:
    """An empty table whose numbers are never cut or wrapped, at the cost of the names beside them."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in columns:
        text = name in TEXT
        # Names are folded where the screen is narrow, so that no part of them is lost.
        table.add_column(name, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    return table


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """Per case and class, then the means; cases with both masks empty are marked and not counted."""
    tolerances = sorted(set(evaluation.tolerances.values())) or [evaluation.nsd_tolerance_mm]
    notes = evaluation.failed or any(s.state != "ok" for s in evaluation.scores)
    table = scores_grid(
        (*COLUMNS, "note") if notes else COLUMNS,
        f"Dice, NSD at {', '.join(f'{t:g}' for t in tolerances)} mm, HD95 in mm",
        "volumes: predicted/reference in ml; error: over their mean; lesions: found/all + false positives",
    )
    for s in evaluation.scores:
        means = [number(getattr(s, name), form) for name, form in MEANS]
        volumes = f"{s.volume_prediction_ml:.2f}/{s.volume_reference_ml:.2f}"
        lesions = f"{s.lesions.found}/{s.lesions.reference} +{s.lesions.false_positives}"
        state = [s.state.replace("_", " ").replace("ok", "")] if notes else []
        table.add_row(s.case, s.label, *means, volumes, number(s.volume_error_percent, "+.1f"), lesions, *state)
    for case in evaluation.failed:
        table.add_row(case, *[""] * (len(COLUMNS) - 1), "not scored")
    table.add_section()
    for label in evaluation.labels:
        found, error = evaluation.lesions(label), number(evaluation.mean("volume_error_percent", label), ".1f")
        means = [number(evaluation.mean(name, label), form) for name, form in MEANS]
        table.add_row("mean", label, *means, "", error, f"{found.found}/{found.reference} +{found.false_positives}")
    table.add_row("mean", "all classes", *(number(evaluation.mean(name), form) for name, form in MEANS))
    (console or scores_console()).print(table)
