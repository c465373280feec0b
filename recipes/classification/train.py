"""Trains a classifier and saves it as timm and the Hugging Face hub lay models out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from ssmvision.errors import UserError
from ssmvision.recipes.classification.callbacks import HISTORY, BestAccuracy, ClassificationHistory
from ssmvision.recipes.classification.config import ClassifyTrainConfig
from ssmvision.recipes.classification.data import (
    Scale,
    TrainingPictures,
    measure_scale,
    open_data,
    training_loader,
    whole_loader,
)
from ssmvision.recipes.classification.module import ClassificationModule
from ssmvision.recipes.classification.networks import MODEL, Spec, build, count_parameters, save_model, start_from
from ssmvision.recipes.classification.run_folder import SETTINGS, check_config, prepare_folder, settings_json
from ssmvision.recipes.classification.sources import PictureSets
from ssmvision.recipes.segmentation.checkpoints import LAST, PREVIOUS
from ssmvision.recipes.segmentation.faults import loader_faults
from ssmvision.recipes.segmentation.lightning_trainer import check_accelerator, make_trainer, quiet_lightning
from ssmvision.recipes.segmentation.ranks import rank, run_ranks
from ssmvision.recipes.segmentation.seeds import StepSeeds
from ssmvision.recipes.segmentation.stopping import Checkpoints, interruptible
from ssmvision.recipes.segmentation.writing import check_folder, write_bytes

__all__ = ["RunResult", "run", "train"]


@dataclass(frozen=True)
class RunResult:
    """What a training left behind.

    Args:
        out: run folder.
        model: folder of the saved model.
        history: metrics.csv, one line per epoch.
        epochs, steps: done in all, earlier parts of a resumed run included.
        seconds: of this call.
        validation: loss, accuracy and balanced accuracy of the saved weights; empty without validation pictures.
        parameters: of the network.
    """

    out: Path
    model: Path
    history: Path
    epochs: int
    steps: int
    seconds: float
    validation: dict[str, float]
    parameters: int


def run(config: ClassifyTrainConfig) -> RunResult:
    """Trains, or continues a training, and saves the model.

    Raises:
        UserError: settings or data are unusable, memory is too small, or training diverged; the run keeps its last
            checkpoint.
        SystemExit: with status 143 after SIGTERM, once the running step is in the checkpoint.
        KeyboardInterrupt: likewise after Ctrl-C.
    """
    check_config(config)
    check_folder(Path(config.out))
    check_accelerator(config.trainer.accelerator, config.trainer.devices)
    sets = open_data(config.data)
    needed = {"early_stop_epochs": config.trainer.early_stop_epochs is not None, "save": config.trainer.save == "best"}
    for name in (name for name, wanted in needed.items() if wanted and sets.validation is None):
        value = getattr(config.trainer, name)
        raise UserError(f"trainer.{name}: {value} needs validation pictures; set data.validation_fraction above 0")
    make_network(config, sets, measure_scale(sets.training, config))  # on failure, before anything is written
    prepare_folder(config)
    write_bytes(config.out / SETTINGS, settings_json(config))
    if config.trainer.devices == 1:
        return train(config)
    return run_ranks(train, config, config.trainer.devices, fork=config.trainer.accelerator == "cpu")


def make_network(config: ClassifyTrainConfig, sets: PictureSets, scale: Scale) -> tuple[nn.Module, Spec, str]:
    """The network by the run's seed, what it is built from, and what it starts from."""
    seed_everything(config.trainer.seed, workers=True, verbose=False)
    network, spec = build(config.model, sets.classes, scale)
    checkpoint = config.model.checkpoint
    return network, spec, "random weights" if checkpoint is None else start_from(network, checkpoint)


def train(config: ClassifyTrainConfig) -> RunResult:
    """One process of a training; with several, each runs this, and the first one writes."""
    started, t = time.monotonic(), config.trainer
    if t.threads is not None:
        torch.set_num_threads(t.threads)
    sets = open_data(config.data)
    scale = measure_scale(sets.training, config)
    network, spec, origin = make_network(config, sets, scale)
    steps = max(1, round(len(sets.training) / t.batch_size))
    cases = len(sets.validation) if sets.validation is not None else 0
    module = ClassificationModule(network, t, config.augment, len(sets.classes), steps, cases)
    console = Console(stderr=True, quiet=rank() > 0)
    announce(console, config, sets, module, origin)
    history = ClassificationHistory(config.out, None if console.is_terminal else console)
    best = BestAccuracy(t.early_stop_epochs, t.save == "best")
    checkpoints = Checkpoints(config.out, t.checkpoint_steps)
    with quiet_lightning():
        callbacks = [StepSeeds(t.seed), history, best]
        terminal = console.is_terminal and rank() == 0
        trainer = make_trainer(t, checkpoints, callbacks, terminal, cases > 0, t.devices)
        dataset = TrainingPictures(sets.training, scale, config.augment, t.seed)
        batches = training_loader(dataset, config, steps, lambda: history.steps, rank(), t.devices)
        whole = None
        if sets.validation is not None:
            whole = whole_loader(sets.validation, scale, t.batch_size // t.devices, 0, rank(), t.devices)
        fit(trainer, module, batches, whole, config, checkpoints)
    if best.weights is not None:
        module.result.load_state_dict(best.weights)
        module.validation = dict(best.validation)
    if trainer.is_global_zero:
        save_model(config.out / MODEL, module.result, spec, describe(config, sets, module, trainer, best))
        console.print(f"saved {config.out / MODEL}", markup=False, highlight=False, soft_wrap=True)
    return RunResult(
        out=config.out,
        model=config.out / MODEL,
        history=config.out / HISTORY,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=time.monotonic() - started,
        validation=dict(module.validation),
        parameters=count_parameters(network),
    )


def announce(
    console: Console, config: ClassifyTrainConfig, sets: PictureSets, module: ClassificationModule, origin: str
) -> None:
    """Prints what is about to run."""
    t = config.trainer
    held = 0 if sets.validation is None else len(sets.validation)
    tested = 0 if sets.test is None else len(sets.test)
    lines = (
        f"data      {config.data.root}: {len(sets.training):,} training, {held:,} validation and {tested:,} test "
        f"picture(s) of {len(sets.classes)} classes",
        f"network   {config.model.name}, {count_parameters(module.network):,} parameters, {origin}",
        f"training  {t.max_epochs} epochs of {module.steps_per_epoch} steps, {t.batch_size} pictures, {t.optimizer} "
        f"lr {t.lr:g}, {t.precision}, seed {t.seed}" + (f", {t.devices} devices" if t.devices > 1 else ""),
        f"run       {config.out}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def fit(
    trainer: Trainer,
    module: ClassificationModule,
    batches: DataLoader[Any],
    validation: DataLoader[Any] | None,
    config: ClassifyTrainConfig,
    checkpoints: Checkpoints,
) -> None:
    """Runs the epochs, and a validation if the last epoch had none.

    Raises:
        UserError: a worker of the loader failed, or the device's memory is too small.
    """
    saved = any((config.out / name).is_file() for name in (LAST, PREVIOUS))
    checkpoint = str(config.out / LAST) if config.resume and saved else None
    with interruptible(trainer), loader_faults(batches):
        try:
            trainer.fit(module, batches, validation, ckpt_path=checkpoint, weights_only=True)
        except RuntimeError as error:
            if checkpoints.received is not None:
                checkpoints.end(trainer)  # whoever told this process to stop has ended its workers
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            full = str(error).partition(". GPU")[0].partition("\n")[0]
            raise UserError(
                f"out of memory in training ({full}); lower trainer.batch_size (now {config.trainer.batch_size}) or "
                "use trainer.precision=bf16-mixed"
            ) from error
    every = min(config.trainer.validate_every, config.trainer.max_epochs)
    if validation is not None and (trainer.current_epoch % every or not module.validation):
        trainer.validate(module, validation, verbose=False)


def describe(
    config: ClassifyTrainConfig,
    sets: PictureSets,
    module: ClassificationModule,
    trainer: Trainer,
    best: BestAccuracy,
) -> dict[str, Any]:
    """The training entry of the saved model; no paths, which may name people or places."""
    parts = {name: asdict(getattr(config, name)) for name in ("augment", "trainer")}
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "saved_epoch": best.epoch if best.weights is not None else trainer.current_epoch,
        "saved_weights": "moving average" if module.average is not None else "as trained",
        "fine_tuned": config.model.checkpoint is not None,
        "training_pictures": len(sets.training),
        "validation": {name: round(value, 6) for name, value in module.validation.items()},
        "settings": json.loads(json.dumps(parts)),
    }
