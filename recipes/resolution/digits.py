"""`ssmvision resolution digits`: trained at a low resolution, tested at others, as a table and a figure."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from ssmvision.bench.table import markdown
from ssmvision.errors import UserError
from ssmvision.recipes.resolution.config import DigitsConfig
from ssmvision.recipes.resolution.figure import accuracy_png
from ssmvision.recipes.resolution.networks import METHODS
from ssmvision.recipes.resolution.pictures import load_pictures
from ssmvision.recipes.resolution.training import accuracy, train_network
from ssmvision.recipes.segmentation.lightning_trainer import check_accelerator
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes

__all__ = ["Result", "prepare_folder", "run", "table"]

SCORES, FIGURE, CONFIG = "accuracy.json", "accuracy.png", "config.json"


@dataclass(frozen=True)
class Result:
    """One network's accuracies.

    Attributes:
        method: of `METHODS`.
        parameters: that are trained.
        accuracies: shares of right answers, by test size a list over the seeds.
        seconds: of training and testing, all seeds.
    """

    method: str
    parameters: int
    accuracies: dict[int, list[float]]
    seconds: float


def run(config: DigitsConfig) -> list[Result]:
    """Train and test every network with every seed; print the table, write scores, figure and settings.

    Raises:
        UserError: the pictures are missing, the accelerator cannot be used, or `out` holds results already.
    """
    out = Path(config.out)
    prepare_folder(out, (SCORES, FIGURE, CONFIG), config.overwrite)
    check_accelerator(config.accelerator)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    train, test = load_pictures(config.data, config.train_pictures, config.test_pictures)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"{len(train.labels)} training pictures of {config.train_size} pixels, {len(test.labels)} to test")
    results = []
    for method in METHODS:
        started, parameters = time.monotonic(), 0
        scores: dict[int, list[float]] = {size: [] for size in config.test_sizes}
        for seed in config.seeds:
            module = train_network(method, train, config, seed)
            parameters = sum(p.numel() for p in module.network.parameters() if p.requires_grad)
            for size, found in scores.items():
                found.append(accuracy(module, test, size))
            last = ", ".join(f"{size}: {found[-1]:.3f}" for size, found in scores.items())
            console.print(f"{method}, seed {seed}: {last}", markup=False)
        results.append(Result(method, parameters, scores, time.monotonic() - started))
    scores_text = json.dumps([asdict(result) for result in results], indent=2) + "\n"
    write_bytes(out / SCORES, scores_text)
    write_bytes(out / FIGURE, accuracy_png({r.method: r.accuracies for r in results}, config.train_size))
    write_bytes(out / CONFIG, json.dumps(asdict(config), indent=2, default=str) + "\n")
    print(table(results))
    console.print(f"figure    {out / FIGURE}", markup=False)
    return results


def prepare_folder(out: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder that cannot be written to, or that holds results without `overwrite`.

    Raises:
        UserError: see above.
    """
    check_folder(out)
    present = [name for name in names if (out / name).exists()]
    if present and not overwrite:
        raise UserError(f"{out}: holds {present[0]} already; choose another --out or pass --overwrite")


def table(results: Sequence[Result]) -> str:
    """Markdown: a row a network, mean accuracy and sample standard deviation over the seeds in per cent."""
    rows = []
    for result in results:
        cells = {f"{size} px": _spread(values) for size, values in result.accuracies.items()}
        rows.append({"network": result.method, "parameters": f"{result.parameters:,}", **cells})
    return markdown(rows)


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean
