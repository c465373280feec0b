"""Trains a segmentation network on a dataset folder and saves it as safetensors with its description."""

from __future__ import annotations

import json
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, Timer
from rich.console import Console
from torch.utils.data import DataLoader

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.decide import decide_preprocessing
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.checkpoints import LAST, SafeCheckpointIO
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.datalist import Dataset, hold_out, read_dataset
from ssmvision.recipes.segmentation.history import HISTORY, History
from ssmvision.recipes.segmentation.loading import loaders
from ssmvision.recipes.segmentation.module import SegmentationModule
from ssmvision.recipes.segmentation.planned import apply_plan
from ssmvision.recipes.segmentation.run_folder import CONFIG, check_config, prepare_folder
from ssmvision.recipes.segmentation.split import write_split
from ssmvision.recipes.segmentation.weights import ModelCard, save_model
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes

__all__ = ["RunResult", "run"]


# Warnings that tell the user nothing: few loader workers are the caller's choice, the folder is ours, the third is
# Lightning's own affair, and a time budget may be lifted on resuming.
EXPECTED = (
    "does not have many workers",
    "Checkpoint directory",
    "isinstance.treespec, LeafSpec",
    r"callbacks: \['Timer'\]",
)


@dataclass(frozen=True)
class RunResult:
    """What a training left behind.

    Args:
        out: run folder.
        weights: model.safetensors.
        history: metrics.csv, one line per epoch.
        epochs, steps: done in all, earlier parts of a resumed run included.
        seconds: of this call.
        validation_dice: per class at the end; empty without validation cases.
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


def run(config: TrainConfig) -> RunResult:
    """Trains, or continues a training, and saves the model.

    Raises:
        UserError: settings or data are unusable, or training diverged; a diverged run keeps its last checkpoint.
    """
    started = time.monotonic()
    config = apply_plan(config)
    check_config(config)
    check_folder(config.out)
    check_accelerator(config.trainer.accelerator)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    dataset = hold_out(
        read_dataset(config.data.root),
        config.data.validation_cases,
        config.data.validation_fraction,
        config.trainer.seed,
    )
    preprocessing, spacing = decide_preprocessing(config, dataset)
    architecture = plan_network(config.model, config.patch_size, spacing, len(dataset.channels), len(dataset.labels))
    seed_everything(config.trainer.seed, workers=True, verbose=False)
    network = build_network(architecture)
    module = SegmentationModule(network, config.trainer, dataset.labels, config.patch_size, architecture)
    prepare_folder(config)
    write_split(config.out, dataset)
    console = Console(stderr=True)
    announce(console, config, dataset, module, architecture)
    history = History(config.out, list(module.classes), None if console.is_terminal else console)
    with quiet_lightning():
        trainer = make_trainer(config.out, config.trainer, [history], console.is_terminal, bool(dataset.validation))
        training, validation = loaders(config, dataset, preprocessing, spacing, lambda: len(history.rows))
        fit(trainer, module, training, validation, config)
    card = ModelCard(
        architecture,
        dataset.channels,
        dataset.labels,
        tuple(config.patch_size),
        preprocessing,
        describe(config, dataset, module, trainer),
    )
    weights = save_model(config.out, module.network, card)
    console.print(f"saved {weights}", markup=False, highlight=False, soft_wrap=True)
    return RunResult(
        out=config.out,
        weights=weights,
        history=config.out / HISTORY,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=time.monotonic() - started,
        validation_dice=dict(module.validation),
        parameters=count_parameters(module),
    )


def count_parameters(module: SegmentationModule) -> int:
    """Trainable numbers of the network."""
    return sum(p.numel() for p in module.network.parameters() if p.requires_grad)


def announce(
    console: Console, config: TrainConfig, dataset: Dataset, module: SegmentationModule, architecture: dict[str, Any]
) -> None:
    """Prints what is about to run."""
    arguments, t = architecture["arguments"], config.trainer
    lines = (
        f"data      {dataset.path}: {len(dataset.training)} training and {len(dataset.validation)} validation case(s), "
        f"channels {', '.join(dataset.channels)}, classes {', '.join(module.classes)}",
        f"network   {architecture['name']} {arguments['spatial_dims']}D, mixer {arguments.get('mixer', 'none')}, "
        f"features {arguments['features_per_stage']}, {count_parameters(module):,} parameters",
        f"training  {t.max_epochs} epochs of {t.steps_per_epoch} steps, {t.batch_size} patches of "
        f"{'x'.join(str(n) for n in config.patch_size)}, {t.optimizer} lr {t.lr:g}, {t.precision}, seed {t.seed}",
        f"run       {config.out}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's notices (hardware list, product tips) out of the run's own output; warnings stay."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        logger.setLevel(level)


def check_accelerator(name: str) -> None:
    """Lets Lightning look for the device before any data are read.

    Raises:
        UserError: it knows no such accelerator, or this machine has none.
    """
    try:
        with quiet_lightning():
            Trainer(accelerator=name, devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    except (MisconfigurationException, ImportError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"trainer.accelerator: {name!r} cannot be used ({reason}); give cpu or auto") from error


class TrainerSettings(Protocol):
    """What `make_trainer` reads of a recipe's settings."""

    @property
    def accelerator(self) -> Any:
        """Cpu, gpu or auto."""

    @property
    def precision(self) -> Any:
        """Lightning's name."""

    @property
    def max_epochs(self) -> int:
        """At most."""

    @property
    def max_minutes(self) -> float | None:
        """Time budget, or none."""

    @property
    def validate_every(self) -> int:
        """Epochs."""

    @property
    def deterministic(self) -> bool:
        """Whether to warn of operations that are not."""


def make_trainer(
    out: Path, settings: TrainerSettings, callbacks: Sequence[Callback], terminal: bool, validate: bool
) -> Trainer:
    """Lightning's trainer with our checkpoints, time budget and, on a terminal, a progress bar."""
    t = settings
    checkpoint = ModelCheckpoint(out, Path(LAST).stem, save_on_train_epoch_end=True, enable_version_counter=False)
    every: list[Callback] = [*callbacks, checkpoint]
    if t.max_minutes is not None:
        every.append(Timer(timedelta(minutes=t.max_minutes), interval="epoch", verbose=False))
    if terminal:
        every.append(RichProgressBar())
    return Trainer(
        default_root_dir=out,
        accelerator=t.accelerator,
        devices=1,
        precision=t.precision,
        max_epochs=t.max_epochs,
        deterministic="warn" if t.deterministic else False,
        check_val_every_n_epoch=min(t.validate_every, t.max_epochs),
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        callbacks=every,
        plugins=[SafeCheckpointIO()],
        use_distributed_sampler=False,
        enable_progress_bar=terminal,
        enable_model_summary=False,
    )


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Turns Lightning's exit on Ctrl-C back into KeyboardInterrupt, and its ignoring of further ones off again.

    Raises:
        KeyboardInterrupt: Lightning stopped on Ctrl-C.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def fit(
    trainer: Trainer,
    module: SegmentationModule,
    train: DataLoader[Any],
    validation: DataLoader[Any] | None,
    config: TrainConfig,
) -> None:
    """Runs the epochs, and a validation if the last epoch had none."""
    write_bytes(config.out / CONFIG, json.dumps(asdict(config), indent=2, default=str) + "\n")
    checkpoint = str(config.out / LAST) if config.resume else None
    with interruptible(trainer):
        trainer.fit(module, train, validation, ckpt_path=checkpoint, weights_only=True)
    every = min(config.trainer.validate_every, config.trainer.max_epochs)
    if validation is not None and (trainer.current_epoch % every or not module.validation):
        trainer.validate(module, validation, verbose=False)


def describe(config: TrainConfig, dataset: Dataset, module: SegmentationModule, trainer: Trainer) -> dict[str, Any]:
    """The training entry of the model card; no paths, which may name people or places."""
    dice = {k: None if math.isnan(v) else round(v, 6) for k, v in module.validation.items()}
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "training_cases": len(dataset.training),
        "validation_cases": len(dataset.validation),
        "validation_dice": dice,
        "settings": json.loads(json.dumps({"trainer": asdict(config.trainer), "augment": asdict(config.augment)})),
    }
