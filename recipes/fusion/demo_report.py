"""The fusion demo's report: what it shows, where a classical method is better, and what it does not show."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.metrics.fusion import METRICS
from ssmvision.recipes.fusion.demo_config import FusionDemoConfig, Task
from ssmvision.recipes.fusion.demo_data import TaskData
from ssmvision.recipes.fusion.pictures import comparison_png, detail_box
from ssmvision.recipes.fusion.scores import COMPARED, TRUTH, Score, best_methods, mean_ranks, mean_scores, metric_names
from ssmvision.recipes.fusion.train import RunResult
from ssmvision.recipes.fusion.weights import FusionCard
from ssmvision.recipes.segmentation.figures import Curve, curves_png
from ssmvision.recipes.segmentation.report import Facts, Highlight, Picture, Report, Row, Table, write_report
from ssmvision.recipes.segmentation.report_parts import environment_facts, settings_facts
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["FIGURES", "OURS", "SHIPPED", "FusionOutcome", "demo_command", "write_demo_report"]

Gray = NDArray[np.float32]
OURS, SHIPPED = "FusionMamba", "FusionMamba, shipped"
FIGURES = ("t1-t2", "visible-nir", "multi-focus", "curves")
LIMITS = (
    "None of this says which fused image is the better one to look at or to diagnose from: without a true result, "
    "every metric prefers some property of the sources; methods that copy one source score high in some of them, "
    "and the plain mean in others. The weights have not seen the test pairs, but the recipe was made by people who "
    "had. Not a medical device."
)
SHIPPED_NOTE = (
    "FusionMamba, shipped: the weights that come with the package. They were trained on the training parts of the "
    "satellite image and of the photographs alone; they have never seen MRI."
)
_COLUMNS = 4
_BOX = 48
BEST = " *"


@dataclass(frozen=True)
class FusionOutcome:
    """Everything a demo computed.

    Args:
        config, tasks: what was asked for, and the pairs.
        cards: of the networks by seed.
        runs: trainings by seed; empty where earlier networks were tested.
        scores: of every pair, method and seed.
        fused: the first test pair of each task, by task, method and seed.
        seconds: from the start to the last score.
    """

    config: FusionDemoConfig
    tasks: Mapping[Task, TaskData]
    cards: Mapping[int, FusionCard]
    runs: Mapping[int, RunResult]
    scores: tuple[Score, ...]
    fused: Mapping[tuple[str, str, int | None], Gray]
    seconds: float

    def of_task(self, task: str) -> list[Score]:
        """Scores of one task."""
        return [score for score in self.scores if score.task == task]

    def classical(self, task: str) -> list[Score]:
        """Those of them that nothing was trained for."""
        return [score for score in self.of_task(task) if score.method not in (OURS, SHIPPED)]

    def against_classical(self, task: str) -> list[Score]:
        """Those of the trained network and of the classical methods."""
        return [score for score in self.of_task(task) if score.method != SHIPPED]


def _changed(config: Any, default: Any, prefix: str = "") -> list[str]:
    """Options for the settings that differ from their defaults."""
    options = []
    for item in dataclasses.fields(config):
        value, usual = getattr(config, item.name), getattr(default, item.name)
        if dataclasses.is_dataclass(value):
            options += _changed(value, usual, f"{prefix}{item.name}.")
        elif value != usual and item.name not in ("out", "overwrite", "models"):
            text = str(list(value)) if isinstance(value, tuple) else str(value).lower() if value is True else str(value)
            options.append(f"--{prefix}{item.name} {shlex.quote(text)}")
    return options


def demo_command(config: FusionDemoConfig) -> str:
    """Command line with the same settings; of the folder only the name, since paths name people and places."""
    changed = _changed(config, FusionDemoConfig())
    return " ".join(["ssmvision fusion demo", f"--out {shlex.quote(Path(config.out).name)}", *changed])


def _wins(outcome: FusionOutcome, task: str) -> tuple[list[str], dict[str, list[str]]]:
    """Metrics against the sources in which FusionMamba is first, and by classical method those in which that one is."""
    found = best_methods(outcome.against_classical(task))
    best = {name: method for name, method in found.items() if name in COMPARED}
    ours = [name for name, method in best.items() if method == OURS]
    theirs: dict[str, list[str]] = {}
    for name, method in best.items():
        if method != OURS:
            theirs.setdefault(method, []).append(name)
    return ours, theirs


def _summary(outcome: FusionOutcome) -> str:
    seeds = len(outcome.config.seeds)
    counts = []
    for task, data in outcome.tasks.items():
        ours, theirs = _wins(outcome, task)
        total = len(ours) + sum(map(len, theirs.values()))
        counts.append(f"in {len(ours)} of {total} metrics on {data.title}")
    first = outcome.cards[outcome.config.seeds[0]]
    classical = len({score.method for score in outcome.scores} - {OURS, SHIPPED})
    return (
        f"A small FusionMamba was trained without references for {first.training['steps']} steps "
        f"({seeds} seed{'s' if seeds > 1 else ''}) and fused pairs it had not seen. Against "
        f"{classical} classical methods it is first {'; '.join(counts)}."
    )


def _highlights(outcome: FusionOutcome) -> tuple[Highlight, ...]:
    tiles = []
    for task, data in outcome.tasks.items():
        ours, theirs = _wins(outcome, task)
        total = len(ours) + sum(map(len, theirs.values()))
        tiles.append(Highlight(f"{len(ours)} of {total}", f"metrics in which FusionMamba is first: {data.title}"))
    return tuple(tiles)


def _wins_table(outcome: FusionOutcome) -> Table:
    rows = []
    for task, data in outcome.tasks.items():
        ours, theirs = _wins(outcome, task)
        rows.append(Row((data.title, OURS, ", ".join(ours) or "nothing"), emphasis=True))
        rows += [Row((data.title, method, ", ".join(names))) for method, names in theirs.items()]
    caption = (
        "By the mean over the test pairs (and seeds). A method that is in no row is first in nothing. Not counted: EN, "
        "SD, SF and AG, which look at the fused image alone and which noise raises; and MI in nats, being MI in bits "
        "in another unit."
    )
    return Table("Who is first in what", ("Pairs", "Method", "First in"), tuple(rows), 3, 1, caption)


def _number(name: str, value: float) -> str:
    digits = 1 if name in ("SD", "SF") else 2 if name in ("EN", "AG", "PSNR", "PSNR of truth") else 3
    return f"{value:.{digits}f}"


def _means_table(outcome: FusionOutcome, task: Task) -> Table:
    scores, data = outcome.of_task(task), outcome.tasks[task]
    means, best = mean_scores(scores), best_methods(scores)
    rows = []
    for name in metric_names(scores):
        cells = [_cell(name, *means[method][name]) + (BEST if best[name] == method else "") for method in means]
        rows.append(Row((name if name in COMPARED else f"{name} (not counted)", *cells)))
    ranks = mean_ranks(scores)
    first = min(ranks.values())
    cells = [f"{rank:.2f}" + (BEST if rank == first else "") for rank in ranks.values()]
    rows.append(Row(("Mean rank, 1 the best", *cells), emphasis=True))
    seeds = len(outcome.config.seeds)
    spread = f" Of FusionMamba the mean of {seeds} seeds, and the smallest and largest of them." if seeds > 1 else ""
    caption = (
        f"Means over {len(data.tests)} test pair(s); more is better in every metric,{BEST} marks the best.{spread} The "
        "rank is the mean place among the methods of this table over the counted metrics, and depends on both choices. "
        f"{data.split} {data.source}"
    )
    return Table(f"{data.title}: means", ("Metric", *means), tuple(rows), caption=caption)


def _cell(name: str, mean: float, low: float, high: float) -> str:
    if low == high:
        return _number(name, mean)
    return f"{_number(name, mean)} ({_number(name, low)}-{_number(name, high)})"


def _pairs_table(outcome: FusionOutcome) -> Table:
    names = metric_names(outcome.scores)
    ordered = sorted(outcome.scores, key=lambda s: list(outcome.tasks).index(s.task))  # type: ignore[arg-type]
    by_pair = sorted(ordered, key=lambda s: [p.name for p in _pairs(outcome)].index(s.pair))
    rows = []
    for score in by_pair:
        method = score.method if score.seed is None else f"{score.method}, seed {score.seed}"
        cells = [_number(name, score.values[name]) if name in score.values else "-" for name in names]
        row = (score.pair, method, *cells, f"{1e3 * score.seconds:.0f}")
        rows.append(Row(row, emphasis=score.method == OURS))
    caption = (
        "- where a metric's windows do not fit the image, or there is no truth. ms: time to fuse the pair on this "
        "machine's CPU."
    )
    return Table("Every pair and seed", ("Pair", "Method", *names, "ms"), tuple(rows), 2, 1, caption, folded=True)


def _pairs(outcome: FusionOutcome) -> list[Any]:
    return [pair for data in outcome.tasks.values() for pair in data.tests]


def _comparison(outcome: FusionOutcome, task: Task) -> Picture:
    data = outcome.tasks[task]
    pair = data.tests[0]
    images = {data.names[0]: pair.a, data.names[1]: pair.b}
    if pair.truth is not None:
        images["truth"] = pair.truth
    for (of, method, seed), image in outcome.fused.items():
        if of == task and seed in (None, outcome.config.seeds[0]):
            images[method if seed is None else f"{method}, seed {seed}"] = image
    box = detail_box(np.maximum(pair.a, pair.b), _BOX)
    return Picture(
        comparison_png(images, box, _COLUMNS),
        f"{data.title}: {pair.name}, the first test pair; below each image the marked square magnified. Black is 0 and "
        "white 1 everywhere, nothing is stretched.",
        f"Sources and fused images side by side: {', '.join(images)}.",
    )


def _curves(outcome: FusionOutcome) -> Picture:
    curves = []
    for seed, result in outcome.runs.items():
        lines = [line.split(",") for line in result.history.read_text(encoding="utf-8").splitlines()]
        step, loss = lines[0].index("step"), lines[0].index("train_loss")
        x, y = ([float(line[i]) for line in lines[1:]] for i in (step, loss))
        curves.append(Curve(f"seed {seed}", x, y, "Training loss"))
    return Picture(curves_png(curves), "Training loss, mean of each epoch.", "Line chart of the training loss.")


def _data_facts(outcome: FusionOutcome) -> Facts:
    items = [(f"{data.title}", f"{data.split} {data.source}") for data in outcome.tasks.values()]
    return Facts("Data", tuple(items))


def _convention_facts() -> Facts:
    items = [(name, metric.convention) for name, metric in METRICS.items()]
    items += [(name, "the same metric of the fused image against the sharp photograph") for name in TRUTH]
    return Facts("What the metrics are", tuple(items), folded=True)


def _run_facts(outcome: FusionOutcome) -> Facts:
    items = [("Time", f"{outcome.seconds:.0f} s in all")]
    for seed, card in outcome.cards.items():
        run = outcome.runs.get(seed)
        how = f"{run.seconds:.0f} s of training here, {run.parameters:,} parameters" if run else "trained earlier"
        items.append((f"Seed {seed}", f"{card.training['steps']} steps; {how}"))
    return Facts("Runs", tuple(items))


def write_demo_report(out: Path, outcome: FusionOutcome) -> Path:
    """Writes figures/*.png and report.html into `out` and returns the report's path."""
    figures = {task: _comparison(outcome, task) for task in outcome.tasks}
    if outcome.runs:
        figures |= {"curves": _curves(outcome)}  # type: ignore[dict-item]
    for name, picture in figures.items():
        write_bytes(out / "figures" / f"{name}.png", picture.png)
    settings = {k: v for k, v in dataclasses.asdict(outcome.config).items() if k not in ("out", "overwrite", "models")}
    report = Report(
        title="FusionMamba and classical fusion on pairs not trained on",
        summary=_summary(outcome),
        notices=(LIMITS, *((SHIPPED_NOTE,) if outcome.config.shipped else ())),
        highlights=_highlights(outcome),
        tables=(
            _wins_table(outcome),
            *(_means_table(outcome, task) for task in outcome.tasks),
            _pairs_table(outcome),
        ),
        figures=tuple(figures.values()),
        command=demo_command(outcome.config),
        facts=(
            _data_facts(outcome),
            _run_facts(outcome),
            _convention_facts(),
            environment_facts(),
            settings_facts(settings),
        ),
    )
    return write_report(out / "report.html", report)
