"""The scores and costs of a study of image classifiers as tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssmvision.recipes.image_study.config import Entry
from ssmvision.recipes.image_study.cost import OFF, RECORDED, Cost
from ssmvision.recipes.study.tables import difference, spread, table

__all__ = ["Result", "Study", "markdown", "to_csv"]

REFUSED = "refused"


@dataclass(frozen=True)
class Result:
    """One finished training.

    Args:
        entry, seed: which.
        accuracy: share of the test pictures that are classified rightly.
        resolutions: the same by height in pixels; a text where the network refused them.
        steps: of the optimiser.
        seconds: of the training, other trainings running beside it or not.
        curve: epochs and accuracies on the validation pictures.
    """

    entry: str
    seed: int
    accuracy: float
    resolutions: Mapping[str, float | str]
    steps: int
    seconds: float
    curve: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Study:
    """Everything that the report tells.

    Args:
        entries: the one to compare with first.
        results: of the trainings that are finished.
        costs: by entry, of those that could be measured.
        resolutions: heights in pixels.
    """

    entries: tuple[Entry, ...]
    results: tuple[Result, ...]
    costs: Mapping[str, Cost]
    resolutions: tuple[int, ...]

    def accuracies(self, entry: str) -> list[float]:
        """Percent, of each seed."""
        return [100 * r.accuracy for r in self.results if r.entry == entry]

    def resized(self, entry: str, height: int) -> list[float | str]:
        """Percent, or why not, of each seed."""
        found = [r.resolutions[str(height)] for r in self.results if r.entry == entry]
        return [value if isinstance(value, str) else 100 * value for value in found]


def markdown(study: Study) -> str:
    """All tables of the report."""
    parts = ["### Accuracy on the test pictures, %\n\n" + _accuracy_table(study)]
    if study.resolutions:
        parts.append("### Accuracy on the test pictures resized, without further training, %\n\n" + _sizes(study))
    parts.append("### Cost, alone on the device\n\n" + _cost_table(study))
    if any(cost.graph == RECORDED for cost in study.costs.values()):
        parts.append("G: forward and backward of the training step as CUDA graphs. Inference is without.")
    plain = [f"- {name}: {cost.graph}" for name, cost in study.costs.items() if cost.graph not in (RECORDED, OFF)]
    if plain:
        parts.append("Trained without CUDA graphs:\n\n" + "\n".join(plain))
    refusals = list(dict.fromkeys(_refusals(study)))
    if refusals:
        parts.append("Refused sizes:\n\n" + "\n".join(f"- {line}" for line in refusals))
    return "\n\n".join(parts) + "\n"


def _accuracy_table(study: Study) -> str:
    reference = study.entries[0].name
    rows = []
    for entry in study.entries:
        found = study.accuracies(entry.name)
        apart = None if entry.name == reference else difference(found, study.accuracies(reference))
        seconds = spread([r.seconds for r in study.results if r.entry == entry.name], 0)
        text = "-" if apart is None else f"{apart[0]:+.2f} ± {apart[1]:.2f}"
        rows.append([entry.name, entry.group, spread(found, 2), text, str(len(found)), seconds])
    heads = ["", "group", "mean ± sd", f"minus {reference} ± standard error", "seeds", "s per training, beside others"]
    return table(heads, rows)


def _sizes(study: Study) -> str:
    rows = []
    for entry in study.entries:
        cells = []
        for height in study.resolutions:
            found = study.resized(entry.name, height)
            numbers = [value for value in found if not isinstance(value, str)]
            cells.append(spread(numbers, 2) if numbers or not found else REFUSED)
        rows.append([entry.name, *cells])
    return table(["height, pixels", *map(str, study.resolutions)], rows)


def _refusals(study: Study) -> list[str]:
    return [
        f"{entry.name}, {height}: {value}"
        for entry in study.entries
        for height in study.resolutions
        for value in study.resized(entry.name, height)
        if isinstance(value, str)
    ]


def _cost_table(study: Study) -> str:
    rows = []
    for entry in study.entries:
        cost = study.costs.get(entry.name)
        if cost is None:
            rows.append([entry.name, *["-"] * 7])
            continue
        rows.append(
            [
                entry.name,
                f"{cost.parameters:,}",
                f"{cost.macs / 1e9:.4f}",
                f"{cost.step_ms:.2f}{' G' if cost.graph == RECORDED else ''}",
                f"{cost.training_per_s:,.0f}",
                f"{cost.inference_per_s:,.0f}",
                f"{cost.latency_ms:.2f}",
                "-" if cost.memory_mb is None else f"{cost.memory_mb:,.0f}",
            ]
        )
    heads = ["", "parameters", "GMACs", "ms per training step", "training, img/s", "inference, img/s"]
    return table([*heads, "latency of one, ms", "peak memory in training, MiB"], rows)


def to_csv(study: Study) -> str:
    """One line per training and resolution; the resolution is empty for the accuracy as trained."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["entry", "group", "seed", "height", "accuracy", "steps", "seconds"])
    groups = {entry.name: entry.group for entry in study.entries}
    for r in study.results:
        sizes = {height: "" if isinstance(value, str) else value for height, value in r.resolutions.items()}
        for height, value in {"": r.accuracy, **sizes}.items():
            writer.writerow([r.entry, groups[r.entry], r.seed, height, value, r.steps, r.seconds])
    return text.getvalue()
