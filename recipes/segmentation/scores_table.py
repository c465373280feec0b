"""The table of scores that a command prints."""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table

from ssmvision.recipes.segmentation.scores import Evaluation

__all__ = ["number", "print_table"]

COLUMNS = ("case", "class", "Dice", "NSD", "HD95", "predicted", "reference", "error %", "lesions", "note")
MEANS = (("dice", ".4f"), ("nsd", ".4f"), ("hd95_mm", ".2f"))


def number(value: float, form: str) -> str:
    """A formatted number, or "-" for NaN."""
    return "-" if math.isnan(value) else format(value, form)


def print_table(evaluation: Evaluation, console: Console | None = None) -> None:
    """Per case and class, then the means; cases with both masks empty are marked and not counted."""
    tolerances = sorted(set(evaluation.tolerances.values())) or [evaluation.nsd_tolerance_mm]
    shown = ", ".join(f"{t:g}" for t in tolerances)
    table = Table(
        title=f"Dice, NSD at {shown} mm, HD95 in mm, volumes in ml",
        caption="lesions: found/all, + false positives; error %: over the mean of both volumes, in means its size",
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("case", "class", "note") else "right")
    for s in evaluation.scores:
        means = [number(getattr(s, name), form) for name, form in MEANS]
        volumes = (
            f"{s.volume_prediction_ml:.2f}",
            f"{s.volume_reference_ml:.2f}",
            number(s.volume_error_percent, "+.1f"),
        )
        lesions = f"{s.lesions.found}/{s.lesions.reference} +{s.lesions.false_positives}"
        state = "" if s.state == "ok" else s.state.replace("_", " ")
        table.add_row(s.case, s.label, *means, *volumes, lesions, state)
    table.add_section()
    for label in evaluation.labels:
        found, error = evaluation.lesions(label), number(evaluation.mean("volume_error_percent", label), ".1f")
        means = [number(evaluation.mean(name, label), form) for name, form in MEANS]
        counted = f"{found.found}/{found.reference} +{found.false_positives}"
        table.add_row("mean", label, *means, "", "", error, counted, "")
    means = [number(evaluation.mean(name), form) for name, form in MEANS]
    table.add_row("mean", "all classes", *means)
    for case in evaluation.failed:
        table.add_row(case, "", "", "", "", "", "", "", "", "not scored")
    (console or Console()).print(table)
