"""The demo: a small FusionMamba learns from real pairs and is compared with classical fusion on pairs it never saw."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.fusion import train
from ssmvision.recipes.fusion.callbacks import fused_image
from ssmvision.recipes.fusion.classical import METHODS
from ssmvision.recipes.fusion.config import DataConfig, FusionTrainConfig
from ssmvision.recipes.fusion.demo_config import FusionDemoConfig, Task
from ssmvision.recipes.fusion.demo_data import TaskData, load_task
from ssmvision.recipes.fusion.demo_report import FIGURES, OURS, SHIPPED, FusionOutcome, write_demo_report
from ssmvision.recipes.fusion.pairs import ImagePair
from ssmvision.recipes.fusion.scores import Score, measure, scores_csv
from ssmvision.recipes.fusion.weights import open_model
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes

__all__ = ["FusionDemoResult", "run", "training_config", "training_pairs"]

Gray = NDArray[np.float32]
Fuse = Callable[[ImagePair], Gray]


@dataclass(frozen=True)
class FusionDemoResult:
    """What a demo left behind.

    Args:
        out: its folder.
        report: report.html.
        scores: of every pair, method and seed.
        seconds: in all.
    """

    out: Path
    report: Path
    scores: tuple[Score, ...]
    seconds: float


def run(config: FusionDemoConfig) -> FusionDemoResult:
    """Trains, fuses the unseen pairs by every method, measures, and writes the report.

    Raises:
        UserError: the folder is in use, a package that holds the pictures is missing, or a training failed.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    out = Path(config.out)
    _prepare_folder(out, config.overwrite)
    tasks = {task: load_task(task) for task in config.tasks}
    shipped = open_model()[0] if config.shipped else None  # before the training, which a fault would make useless
    runs = {} if config.models else _train(config, tasks, console)
    folder = config.models or out
    networks = {seed: open_model(folder / "models" / f"seed-{seed}") for seed in config.seeds}
    fusions: list[tuple[str, int | None, Fuse]] = [(name, None, _classical(name)) for name in METHODS]
    fusions += [(OURS, seed, _network(network)) for seed, (network, _) in networks.items()]
    if shipped is not None:
        fusions.append((SHIPPED, None, _network(shipped)))
    scores, fused = _scored(tasks, fusions, out)
    cards = {seed: card for seed, (_, card) in networks.items()}
    outcome = FusionOutcome(config, tasks, cards, runs, tuple(scores), fused, time.monotonic() - started)
    write_bytes(out / "scores.csv", scores_csv(scores))
    write_bytes(out / "scores.json", json.dumps([asdict(score) for score in scores], indent=1) + "\n")
    report = write_demo_report(out, outcome)
    console.print(f"report    {report}", markup=False, highlight=False, soft_wrap=True)
    return FusionDemoResult(out, report, tuple(scores), time.monotonic() - started)


def _prepare_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; give a folder as --out")
    check_folder(out)
    # All that `overwrite` removes: the folder may hold other things too.
    written = ["models", "fused", "scores.csv", "scores.json", "report.html", *(f"figures/{n}.png" for n in FIGURES)]
    present = [out / name for name in written if (out / name).exists()]
    if present and not overwrite:
        held = present[0].relative_to(out)
        raise UserError(f"{out}: holds a demo ({held}); choose another --out or pass --overwrite")
    for path in present:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def training_pairs(tasks: Mapping[Task, TaskData]) -> list[ImagePair]:
    """The training pairs of all tasks, repeated so that each task has about as many."""
    most = max(len(data.training) for data in tasks.values())
    return [pair for data in tasks.values() for pair in data.training * round(most / len(data.training))]


def training_config(config: FusionDemoConfig, seed: int) -> FusionTrainConfig:
    """Settings of one of the demo's trainings."""
    return FusionTrainConfig(
        data=DataConfig(Path("demo"), Path("demo"), validation_fraction=0.0),
        out=Path(config.out) / "models" / f"seed-{seed}",
        model=config.model,
        loss=config.loss,
        augment=config.augment,
        trainer=replace(config.trainer, seed=seed),
        patch_size=config.patch_size,
    )


def _train(config: FusionDemoConfig, tasks: Mapping[Task, TaskData], console: Console) -> dict[int, train.RunResult]:
    pairs = training_pairs(tasks)
    runs = {}
    for seed in config.seeds:
        console.rule(f"{OURS}, seed {seed}")
        runs[seed] = train.train_pairs(training_config(config, seed), pairs, ())
    return runs


def _classical(name: str) -> Fuse:
    return lambda pair: np.asarray(METHODS[name](pair.a, pair.b), dtype=np.float32)


def _network(network: torch.nn.Module) -> Fuse:
    return lambda pair: fused_image(network, pair, torch.device("cpu"))


def _scored(
    tasks: Mapping[Task, TaskData], fusions: list[tuple[str, int | None, Fuse]], out: Path
) -> tuple[list[Score], dict[tuple[str, str, int | None], Gray]]:
    """Scores of every test pair, and by task, method and seed the picture of its first pair; writes all pictures."""
    scores: list[Score] = []
    fused: dict[tuple[str, str, int | None], Gray] = {}
    for task, data in tasks.items():
        for number, pair in enumerate(data.tests):
            for method, seed, fuse in fusions:
                start = time.perf_counter()
                image = fuse(pair)
                seconds = time.perf_counter() - start
                scores.append(Score(task, pair.name, method, seed, measure(pair, image), seconds))
                fused.setdefault((task, method, seed), image)
                label = method.lower().replace(", ", "-").replace(" ", "-") + ("" if seed is None else f"-seed-{seed}")
                _write_png(out / "fused" / task / f"{number + 1}-{label}.png", image)
    return scores, fused


def _write_png(path: Path, image: Gray) -> None:
    done, content = cv2.imencode(".png", np.rint(255 * image).astype(np.uint8))
    assert done
    write_bytes(path, content.tobytes())
