"""What most segmentation reports hold: score tables, training curves, environment and settings."""

from __future__ import annotations

import csv
import dataclasses
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ssmvision.recipes.segmentation.figures import Curve
from ssmvision.recipes.segmentation.report import Facts, Row, Table
from ssmvision.recipes.segmentation.scores import Evaluation
from ssmvision.recipes.segmentation.scores_table import number

__all__ = ["environment_facts", "flatten", "scores_table", "settings_facts", "training_curves"]

PACKAGES = ("ssmvision", "torch", "monai", "lightning", "timm", "numpy", "nibabel")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():  # platform.processor() is empty on most Linux systems
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment_facts() -> Facts:
    """Hardware, operating system and package versions of this process."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    items = [
        ("Processor", f"{_processor()}, logical cores: {os.cpu_count()}, threads used: {torch.get_num_threads()}"),
        ("GPU", ", ".join(gpus) or "none"),
        ("System", f"{platform.system()} {platform.release()}, Python {platform.python_version()}"),
        ("Versions", ", ".join(f"{name} {_version(name)}" for name in PACKAGES)),
    ]
    return Facts("Environment", tuple(items))


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Every value of a nested mapping as text, under its dotted name."""
    items: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            items += flatten(value, f"{prefix}{name}.")
        else:
            items.append((f"{prefix}{name}", str(value)))
    return items


def settings_facts(settings: Any, title: str = "Settings") -> Facts:
    """Every field of a (nested) dataclass instance or mapping under its dotted name, folded.

    Raises:
        TypeError: `settings` is neither.
    """
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        settings = dataclasses.asdict(settings)
    if not isinstance(settings, Mapping):
        raise TypeError(f"settings must be a dataclass instance or a mapping, got {type(settings).__name__}")
    return Facts(title, tuple(flatten(settings)), folded=True)


def scores_table(evaluations: Mapping[str, Evaluation], main: str, title: str = "Scores", caption: str = "") -> Table:
    """One row per case, class and method, the methods of a class side by side.

    Args:
        evaluations: by name of the method, all of the same cases and classes.
        main: the method whose rows are emphasised.
        title: as in `Table`.
        caption: as in `Table`; it is preceded by what the columns are.

    Raises:
        ValueError: the evaluations differ in their cases, classes or NSD tolerance.
    """
    scored = {name: {(s.case, s.label): s for s in e.scores} for name, e in evaluations.items()}
    first, tolerance = scored[main], evaluations[main].nsd_tolerance_mm
    for name, scores in scored.items():
        if scores.keys() != first.keys() or evaluations[name].nsd_tolerance_mm != tolerance:
            raise ValueError(f"{name!r} and {main!r} were not scored on the same cases, classes and NSD tolerance")
    rows = []
    for case, label in first:
        for name, scores in scored.items():
            s = scores[case, label]
            numbers = (number(s.dice, ".3f"), number(s.nsd, ".3f"), number(s.hd95_mm, ".1f"))
            volumes = (f"{s.volume_prediction_ml:.1f}", f"{s.volume_reference_ml:.1f}")
            rows.append(Row((case, label, name, *numbers, *volumes), emphasis=name == main))
    columns = ("Case", "Class", "Method", "Dice", "NSD", "HD95, mm", "Volume, ml", "Reference, ml")
    units = f"NSD: share of the surfaces within {tolerance:g} mm. HD95: 95th percentile of the surface distance."
    return Table(title, columns, tuple(rows), text_columns=3, group_by=2, caption=f"{units} {caption}".strip())


def training_curves(history: Path, name: str = "") -> list[Curve]:
    """Loss and validation Dice of a run's metrics.csv against the step; `name` is put before each curve's own."""
    with history.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curves = []
    for column in (c for c in rows[0] if c == "train_loss" or c.startswith("val_dice_")) if rows else ():
        points = [(float(row["step"]), float(row[column])) for row in rows if row[column]]
        if points:
            x, y = zip(*points, strict=True)
            label, panel = ("training", "Loss") if column == "train_loss" else (column[len("val_dice_") :], "Dice")
            curves.append(Curve(f"{name} {label}".strip(), x, y, panel))
    return curves
