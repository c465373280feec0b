"""Trains a classifier and saves it as timm and the Hugging Face hub lay models out."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.classification.batched import training_batches, whole_batches
from ssmvision.recipes.classification.callbacks import HISTORY, BestAccuracy, ClassificationHistory
from ssmvision.recipes.classification.config import ClassifyTrainConfig
from ssmvision.recipes.classification.data import open_data
from ssmvision.recipes.classification.graphs import GraphedNetwork
from ssmvision.recipes.classification.module import ClassificationModule, class_weights
from ssmvision.recipes.classification.networks import MODEL, save_model
from ssmvision.recipes.classification.pictures import PictureSets
from ssmvision.recipes.classification.run_folder import FOLDER, check_config
from ssmvision.recipes.classification.start import choose_scale, make_network
from ssmvision.recipes.segmentation.lightning_trainer import check_accelerator, make_trainer, quiet_lightning
from ssmvision.recipes.segmentation.ranks import rank, run_ranks
from ssmvision.recipes.segmentation.seeds import StepSeeds
from ssmvision.recipes.segmentation.stopping import Checkpoints
from ssmvision.recipes.segmentation.writing import check_folder
from ssmvision.recipes.training.fitting import Finished, count_parameters, fit

__all__ = ["RunResult", "run", "train"]


@dataclass(frozen=True)
class RunResult(Finished):
    """See `Finished`.

    Args:
        model: folder of the saved model.
        validation: loss, accuracy and balanced accuracy of the saved weights; empty without validation pictures.
    """

    model: Path
    validation: dict[str, float]


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
    make_network(config, sets, choose_scale(config, sets))  # on failure, before anything is written
    FOLDER.prepare(config)
    FOLDER.keep_settings(config)
    if config.trainer.devices == 1:
        return train(config)
    return run_ranks(train, config, config.trainer.devices, fork=config.trainer.accelerator == "cpu")


def train(config: ClassifyTrainConfig) -> RunResult:
    """One process of a training; with several, each runs this, and the first one writes."""
    started, t = time.monotonic(), config.trainer
    if t.threads is not None:
        torch.set_num_threads(t.threads)
    sets = open_data(config.data)
    scale = choose_scale(config, sets)
    network, spec, origin = make_network(config, sets, scale)
    steps = max(1, round(len(sets.training) / t.batch_size))
    cases = len(sets.validation) if sets.validation is not None else 0
    weights = class_weights(sets.training.labels, len(sets.classes)) if t.class_weights == "balanced" else None
    module = ClassificationModule(network, t, config.augment, len(sets.classes), steps, cases, weights)
    console = Console(stderr=True, quiet=rank() > 0)
    announce(console, config, sets, module, origin)
    history = ClassificationHistory(config.out, None if console.is_terminal else console)
    best = BestAccuracy(t.early_stop_epochs, t.save == "best")
    checkpoints = Checkpoints(config.out, t.checkpoint_steps)
    with quiet_lightning():
        shape = (t.batch_size // t.devices, len(scale.mean), *scale.size)
        graphs = [GraphedNetwork(shape, t.precision)] if t.cuda_graph else []
        callbacks = [StepSeeds(t.seed), history, best, *graphs]
        terminal = console.is_terminal and rank() == 0
        trainer = make_trainer(t, checkpoints, callbacks, terminal, cases > 0, t.devices)
        place = (trainer.strategy.root_device, rank(), t.devices)
        batches = training_batches(sets.training, scale, config, steps, lambda: history.steps, *place)
        whole = None if sets.validation is None else whole_batches(sets.validation, scale, config, *place)
        fit(
            *(trainer, module, batches, whole, checkpoints),
            resume=config.resume,
            validate_every=t.validate_every,
            memory_advice=lambda: f"lower trainer.batch_size (now {t.batch_size}) or use trainer.precision=bf16-mixed",
        )
    best.restore(module)
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
        **best.told(module, trainer),
        "fine_tuned": config.model.checkpoint is not None or config.model.pretrained,
        "training_pictures": len(sets.training),
        "validation": {name: round(value, 6) for name, value in module.validation.items()},
        "settings": json.loads(json.dumps(parts)),
    }
