"""Trains a segmentation network on a dataset folder and saves it as safetensors with its description."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.decide import decide_preprocessing
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.best import BestEpoch
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset, hold_out, read_dataset
from ssmvision.recipes.segmentation.faults import memory_advice
from ssmvision.recipes.segmentation.folds import split
from ssmvision.recipes.segmentation.history import HISTORY, History
from ssmvision.recipes.segmentation.lightning_trainer import check_accelerator, make_trainer, quiet_lightning
from ssmvision.recipes.segmentation.loading import loaders, open_cases
from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.segmentation.planned import apply_plan
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.ranks import rank, run_ranks
from ssmvision.recipes.segmentation.run_folder import FOLDER, check_config, prepare_folder
from ssmvision.recipes.segmentation.seeds import StepSeeds
from ssmvision.recipes.segmentation.split import write_split
from ssmvision.recipes.segmentation.stopping import Checkpoints
from ssmvision.recipes.segmentation.weights import WEIGHTS, ModelCard, save_model
from ssmvision.recipes.segmentation.writing import check_folder
from ssmvision.recipes.training.fitting import Finished, count_parameters, fit

__all__ = ["Job", "RunResult", "run", "train"]


@dataclass(frozen=True)
class RunResult(Finished):
    """See `Finished`.

    Args:
        weights: model.safetensors.
        validation_dice: per class with the saved weights; empty without validation cases.
    """

    weights: Path
    validation_dice: dict[str, float]


@dataclass(frozen=True)
class Job:
    """All that is decided before the first process of a training starts.

    Args:
        config: with what its plan decides.
        dataset: split into training and validation cases.
        preprocessing: of every case.
        spacing: voxel size that the network was planned for, mm.
        architecture: see `architecture.plan_network`.
    """

    config: TrainConfig
    dataset: Dataset
    preprocessing: Preprocessing
    spacing: tuple[float, ...]
    architecture: dict[str, Any]


def run(config: TrainConfig) -> RunResult:
    """Trains, or continues a training, and saves the model.

    Raises:
        UserError: settings or data are unusable, memory is too small, or training diverged; the run keeps its last good
            checkpoint.
        SystemExit: with status 143 after SIGTERM, once the running step is in the checkpoint.
        KeyboardInterrupt: likewise after Ctrl-C.
    """
    config = apply_plan(config)
    check_config(config)
    check_folder(config.out)
    check_accelerator(config.trainer.accelerator, config.trainer.devices)
    dataset = _split(config)
    preprocessing, spacing = decide_preprocessing(config, dataset)
    architecture = plan_network(config.model, config.patch_size, spacing, len(dataset.channels), len(dataset.labels))
    build_network(architecture)  # on failure, before anything is written
    prepare_folder(config)
    write_split(config.out, dataset)
    FOLDER.keep_settings(config)
    job = Job(config, dataset, preprocessing, tuple(spacing), architecture)
    if config.trainer.devices == 1:
        return train(job)
    open_cases(config, dataset, preprocessing)  # fills the cache once, not in every process
    return run_ranks(train, job, config.trainer.devices, fork=config.trainer.accelerator == "cpu")


def _split(config: TrainConfig) -> Dataset:
    dataset, data = read_dataset(config.data.root), config.data
    if data.fold is None:
        dataset = hold_out(dataset, data.validation_cases, data.validation_fraction, config.trainer.seed)
    elif data.fold == "each":
        raise ValueError("data.fold is 'each', which is several trainings; see fold_runs.run")
    else:
        dataset = split(dataset, data.fold, data.folds)
    needed = {"early_stop_epochs": config.trainer.early_stop_epochs is not None, "save": config.trainer.save == "best"}
    for name in (name for name, set_ in needed.items() if set_ and not dataset.validation):
        value = getattr(config.trainer, name)
        raise UserError(f"trainer.{name}: {value} needs validation cases; set data.validation_fraction above 0")
    return dataset


def train(job: Job) -> RunResult:
    """One process of a training; with several, each runs this, and the first one writes."""
    started = time.monotonic()
    config, dataset, t = job.config, job.dataset, job.config.trainer
    if t.threads is not None:
        torch.set_num_threads(t.threads)
    seed_everything(t.seed, workers=True, verbose=False)
    network = build_network(job.architecture)
    module = SegmentationModule(network, t, dataset.labels, config.patch_size, job.architecture)
    console = Console(stderr=True, quiet=rank() > 0)
    announce(console, job, module)
    history = History(config.out, list(module.classes), None if console.is_terminal else console)
    best = BestEpoch(t.early_stop_epochs, t.save == "best")
    checkpoints = Checkpoints(config.out, t.checkpoint_steps)
    with quiet_lightning(), tf32(t.tf32):
        callbacks = [StepSeeds(t.seed), history, best]
        terminal = console.is_terminal and rank() == 0
        trainer = make_trainer(t, checkpoints, callbacks, terminal, bool(dataset.validation), t.devices)
        batches, validation = loaders(
            config, dataset, job.preprocessing, job.spacing, lambda: history.steps, rank(), t.devices
        )
        fit(
            *(trainer, module, batches, validation, checkpoints),
            resume=config.resume,
            validate_every=t.validate_every,
            memory_advice=lambda: memory_advice(module, trainer, module.batch_shape),
        )
    best.restore(module)
    if trainer.is_global_zero:
        save_model(config.out, module.result, _card(job, module, trainer, best))
        console.print(f"saved {config.out / WEIGHTS}", markup=False, highlight=False, soft_wrap=True)
    return RunResult(
        out=config.out,
        weights=config.out / WEIGHTS,
        history=config.out / HISTORY,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=time.monotonic() - started,
        validation_dice=dict(module.validation),
        parameters=count_parameters(module.network),
    )


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Lets CUDA round the factors of float32 convolutions and matrix products, or not."""
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = allowed
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def announce(console: Console, job: Job, module: SegmentationModule) -> None:
    """Prints what is about to run."""
    config, dataset = job.config, job.dataset
    arguments, t = job.architecture["arguments"], config.trainer
    lines = (
        f"data      {dataset.path}: {len(dataset.training)} training and {len(dataset.validation)} validation case(s), "
        f"channels {', '.join(dataset.channels)}, classes {', '.join(module.classes)}",
        f"network   {job.architecture['name']} {arguments['spatial_dims']}D, mixer {arguments.get('mixer', 'none')}, "
        f"features {arguments['features_per_stage']}, {count_parameters(module.network):,} parameters",
        f"training  {t.max_epochs} epochs of {t.steps_per_epoch} steps, {t.batch_size} patches of "
        f"{'x'.join(str(n) for n in config.patch_size)}, {t.optimizer} lr {t.lr:g}, {t.precision}, seed {t.seed}"
        + (f", {t.devices} devices" if t.devices > 1 else ""),
        f"run       {config.out}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _card(job: Job, module: SegmentationModule, trainer: Trainer, best: BestEpoch) -> ModelCard:
    dataset = job.dataset
    return ModelCard(
        job.architecture,
        dataset.channels,
        dataset.labels,
        tuple(job.config.patch_size),
        job.preprocessing,
        describe(job, module, trainer, best),
    )


def describe(job: Job, module: SegmentationModule, trainer: Trainer, best: BestEpoch) -> dict[str, Any]:
    """The training entry of the model card; no paths, which may name people or places."""
    config, dataset = job.config, job.dataset
    dice = {k: None if math.isnan(v) else round(v, 6) for k, v in module.validation.items()}
    return {
        **best.told(module, trainer),
        "skipped_steps": module.skipped,
        "training_cases": len(dataset.training),
        "validation_cases": len(dataset.validation),
        "validation_dice": dice,
        "settings": json.loads(json.dumps({"trainer": asdict(config.trainer), "augment": asdict(config.augment)})),
    }
