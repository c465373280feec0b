"""The demo: a small 3D U-Mamba learns brain tissue on the front of the MNI152 head and is tested on its back."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation import predict, train
from ssmvision.recipes.segmentation.baselines import OracleThresholds, fit_oracle_thresholds
from ssmvision.recipes.segmentation.config import (
    DataConfig,
    ModelConfig,
    PredictConfig,
    TrainConfig,
    TrainerConfig,
)
from ssmvision.recipes.segmentation.demo_config import DemoConfig
from ssmvision.recipes.segmentation.demo_data import LABELS, DemoDataset, write_dataset
from ssmvision.recipes.segmentation.demo_report import FIGURES, ORACLE, TWIN, UMAMBA, DemoOutcome, write_demo_report
from ssmvision.recipes.segmentation.evaluate import Evaluation, evaluate_pairs
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes, write_label_map

__all__ = ["DemoResult", "run"]

DATASET = "data/Dataset001_MNI152Slabs"


@dataclass(frozen=True)
class DemoResult:
    """What a demo left behind.

    Args:
        out: its folder.
        report: report.html.
        evaluations: scores on the unseen slab, by method.
        margin: mean Dice of U-Mamba minus that of the oracle thresholds.
        seconds: in all.
        seconds_training: of each network, by method.
        finished: every training ran to its last step within the time limit.
    """

    out: Path
    report: Path
    evaluations: dict[str, Evaluation]
    margin: float
    seconds: float
    seconds_training: dict[str, float]
    finished: bool


def run(config: DemoConfig) -> DemoResult:
    """Makes the data, trains, predicts the unseen slab, scores it beside the baselines and writes the report.

    Raises:
        UserError: the folder is in use, nilearn is missing, or a training failed.
    """
    started = time.monotonic()
    console = Console(stderr=True)
    out = Path(config.out)
    _prepare_folder(out, config.overwrite)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        dataset = write_dataset(out / DATASET, config.slabs, config.corruption, config.train_copies, config.seed)
    except ValueError as error:
        raise UserError(f"slabs: {error}") from error
    except OSError as error:
        raise UserError(f"{out}: could not be written to ({error}); choose another --out") from error

    mixers = {UMAMBA: "mamba", TWIN: "none"} if config.twin else {UMAMBA: "mamba"}
    runs: dict[str, train.RunResult] = {}
    predictions: dict[str, Path] = {}
    for method, mixer in mixers.items():
        console.rule(method)
        runs[method] = train.run(training_config(config, dataset, out / "models" / _slug(method), mixer))
        predictions[method] = _predict(config, dataset, runs[method].out, out / "predictions" / _slug(method))
    predictions[ORACLE], thresholds = _oracle(dataset, out / "predictions" / _slug(ORACLE))

    reference = dataset.root / "labelsTs" / f"{dataset.test}.nii.gz"
    evaluations = {
        method: evaluate_pairs([(path, reference)], LABELS, float(config.slabs.voxel_mm))
        for method, path in predictions.items()
    }
    seconds = time.monotonic() - started
    outcome = DemoOutcome(config, dataset, runs, predictions, evaluations, thresholds, seconds)
    _print_scores(evaluations)
    _write_scores(out / "scores.json", outcome)
    report = write_demo_report(out, outcome)
    console.print(f"report    {report}", markup=False, highlight=False, soft_wrap=True)
    return DemoResult(
        out=out,
        report=report,
        evaluations=evaluations,
        margin=outcome.margin,
        seconds=seconds,
        seconds_training={method: result.seconds for method, result in runs.items()},
        finished=outcome.finished,
    )


def _slug(method: str) -> str:
    return method.lower().replace(" ", "-")


def _written() -> list[str]:
    """Everything the demo writes, and therefore all that `overwrite` removes: the folder may hold other things too."""
    trained = [f"models/{_slug(method)}" for method in (UMAMBA, TWIN)]
    predicted = [f"predictions/{_slug(method)}" for method in (UMAMBA, TWIN, ORACLE)]
    return [DATASET, *trained, *predicted, *(f"figures/{name}.png" for name in FIGURES), "scores.json", "report.html"]


def _prepare_folder(out: Path, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: a file; give a folder as --out")
    check_folder(out)
    present = [out / name for name in _written() if (out / name).exists()]
    if present and not overwrite:
        raise UserError(
            f"{out}: holds a demo ({present[0].relative_to(out)}); choose another --out or pass --overwrite"
        )
    for path in present:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def training_config(config: DemoConfig, dataset: DemoDataset, out: Path, mixer: str) -> TrainConfig:
    """Settings of one of the demo's trainings; `mixer` is "mamba" or, for the twin, "none"."""
    stages = len(config.features)
    model = ModelConfig(
        name="UMambaBot",
        features_per_stage=config.features,
        strides=((1, 1, 1), *[(2, 2, 2)] * (stages - 1)),
        kernel_sizes=((3, 3, 3),) * stages,
        n_conv_per_stage=1,
        n_conv_per_stage_decoder=1,
        mixer="mamba" if mixer == "mamba" else "none",
        deep_supervision=False,
    )
    trainer = TrainerConfig(
        max_epochs=config.epochs,
        steps_per_epoch=config.steps_per_epoch,
        max_minutes=config.max_minutes,
        batch_size=config.batch_size,
        optimizer="adamw",
        lr=config.lr,
        validate_every=max(1, config.epochs // 4),
        seed=config.seed,
        accelerator=config.accelerator,
        threads=config.threads,
    )
    data = DataConfig(root=dataset.root, validation_cases=(dataset.validation,))
    return TrainConfig(data=data, out=out, model=model, trainer=trainer, patch_size=config.patch_size)


def _predict(config: DemoConfig, dataset: DemoDataset, model: Path, out: Path) -> Path:
    device = "cpu" if config.accelerator == "cpu" else "auto"
    images = dataset.root / "imagesTs"
    (path,) = predict.run(PredictConfig(model=model, input=images, output=out, device=device, threads=config.threads))
    return path


def _oracle(dataset: DemoDataset, out: Path) -> tuple[Path, OracleThresholds]:
    """Label map of the best two thresholds for the test image, chosen with its own reference."""
    volume = read_image([dataset.root / "imagesTs" / f"{dataset.test}_0000.nii.gz"])
    reference, _ = read_label_map(
        dataset.root / "labelsTs" / f"{dataset.test}.nii.gz", list(LABELS.values()), volume.grid
    )
    thresholds = fit_oracle_thresholds(volume.data[0], reference)
    path = out / f"{dataset.test}.nii.gz"
    write_label_map(path, thresholds(volume.data[0]), volume.grid)
    return path, thresholds


def _print_scores(evaluations: dict[str, Evaluation]) -> None:
    names = list(evaluations[UMAMBA].labels)
    table = Table(title="Dice on the unseen back slab (real anatomy, simulated artefacts)")
    table.add_column("method")
    for name in (*names, "mean", "gain over the oracle"):
        table.add_column(name, justify="right")
    oracle = evaluations[ORACLE].mean("dice")
    for method, evaluation in evaluations.items():
        mean = evaluation.mean("dice")
        gain = "" if method == ORACLE else f"{mean - oracle:+.3f}"
        table.add_row(method, *(f"{evaluation.mean('dice', n):.3f}" for n in names), f"{mean:.3f}", gain)
    Console().print(table)


def _write_scores(path: Path, outcome: DemoOutcome) -> None:
    content = {
        "methods": {method: evaluation.to_json() for method, evaluation in outcome.evaluations.items()},
        "margin": outcome.margin,
        "oracle_thresholds": asdict(outcome.thresholds),
        "steps": {method: result.steps for method, result in outcome.runs.items()},
        "seconds_training": {method: round(result.seconds, 1) for method, result in outcome.runs.items()},
        "seconds": round(outcome.seconds, 1),
        "finished": outcome.finished,
        "settings": {key: value for key, value in asdict(outcome.config).items() if key != "out"},
    }
    write_bytes(path, json.dumps(content, indent=2) + "\n")
