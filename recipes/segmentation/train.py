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
from torch.utils.data import DataLoader

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.decide import decide_preprocessing
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.best import BestEpoch
from ssmvision.recipes.segmentation.checkpoints import LAST, PREVIOUS
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset, hold_out, read_dataset
from ssmvision.recipes.segmentation.faults import loader_faults, memory_advice
from ssmvision.recipes.segmentation.folds import split
from ssmvision.recipes.segmentation.history import HISTORY, History
from ssmvision.recipes.segmentation.lightning_trainer import check_accelerator, make_trainer, quiet_lightning
from ssmvision.recipes.segmentation.loading import loaders, open_cases
from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.segmentation.planned import apply_plan
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.ranks import rank, run_ranks
from ssmvision.recipes.segmentation.run_folder import CONFIG, check_config, prepare_folder
from ssmvision.recipes.segmentation.seeds import StepSeeds
from ssmvision.recipes.segmentation.split import write_split
from ssmvision.recipes.segmentation.stopping import Checkpoints, interruptible
from ssmvision.recipes.segmentation.weights import WEIGHTS, ModelCard, save_model
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes

__all__ = ["Job", "RunResult", "run", "train"]


@dataclass(frozen=True)
class RunResult:
    """What a training left behind.

    Args:
        out: run folder.
        weights: model.safetensors.
        history: metrics.csv, one line per epoch.
        epochs, steps: done in all, earlier parts of a resumed run included.
        seconds: of this call.
        validation_dice: per class with the saved weights; empty without validation cases.
        parameters: of the network.
    """

    out: Path
    weights: Path
    history: Path
    epochs: int
    steps: int
    seconds: float
    validation_dice: dict[str, float]
    parameters: int


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
    write_bytes(config.out / CONFIG, json.dumps(asdict(config), indent=2, default=str) + "\n")
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
        fit(trainer, module, batches, validation, config, checkpoints)
    if best.weights is not None:
        module.result.load_state_dict(best.weights)
        module.validation = dict(best.validation)
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
        parameters=count_parameters(module),
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


def count_parameters(module: SegmentationModule) -> int:
    """Trainable numbers of the network."""
    return sum(p.numel() for p in module.network.parameters() if p.requires_grad)


def announce(console: Console, job: Job, module: SegmentationModule) -> None:
    """Prints what is about to run."""
    config, dataset = job.config, job.dataset
    arguments, t = job.architecture["arguments"], config.trainer
    lines = (
        f"data      {dataset.path}: {len(dataset.training)} training and {len(dataset.validation)} validation case(s), "
        f"channels {', '.join(dataset.channels)}, classes {', '.join(module.classes)}",
        f"network   {job.architecture['name']} {arguments['spatial_dims']}D, mixer {arguments.get('mixer', 'none')}, "
        f"features {arguments['features_per_stage']}, {count_parameters(module):,} parameters",
        f"training  {t.max_epochs} epochs of {t.steps_per_epoch} steps, {t.batch_size} patches of "
        f"{'x'.join(str(n) for n in config.patch_size)}, {t.optimizer} lr {t.lr:g}, {t.precision}, seed {t.seed}"
        + (f", {t.devices} devices" if t.devices > 1 else ""),
        f"run       {config.out}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def fit(
    trainer: Trainer,
    module: SegmentationModule,
    batches: DataLoader[Any],
    validation: DataLoader[Any] | None,
    config: TrainConfig,
    checkpoints: Checkpoints,
) -> None:
    """Runs the epochs, and a validation if the last epoch had none.

    Raises:
        UserError: a worker of the loader failed, or the device's memory is too small.
    """
    saved = any((config.out / name).is_file() for name in (LAST, PREVIOUS))
    checkpoint = str(config.out / LAST) if config.resume and saved else None
    full = ""
    with interruptible(trainer), loader_faults(batches):
        try:
            trainer.fit(module, batches, validation, ckpt_path=checkpoint, weights_only=True)
        except RuntimeError as error:
            if checkpoints.received is not None:
                checkpoints.end(trainer)  # whoever told this process to stop has ended its workers
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            full = str(error).partition(". GPU")[0].partition("\n")[0]
    if full:  # out of the handler, whose traceback would keep the tensors
        advice = memory_advice(module, trainer, module.batch_shape)
        raise UserError(f"out of memory in training ({full}); {advice}")
    every = min(config.trainer.validate_every, config.trainer.max_epochs)
    if validation is not None and (trainer.current_epoch % every or not module.validation):
        trainer.validate(module, validation, verbose=False)


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
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "skipped_steps": module.skipped,
        "saved_epoch": best.epoch if best.weights is not None else trainer.current_epoch,
        "saved_weights": "moving average" if module.average is not None else "as trained",
        "training_cases": len(dataset.training),
        "validation_cases": len(dataset.validation),
        "validation_dice": dice,
        "settings": json.loads(json.dumps({"trainer": asdict(config.trainer), "augment": asdict(config.augment)})),
    }
