"""Trains a fusion network on pairs of images and saves it as safetensors with its description."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from rich.console import Console
from torch.utils.data import DataLoader

from ssmvision.recipes.fusion.callbacks import HISTORY, FusionHistory, Previews
from ssmvision.recipes.fusion.config import FusionTrainConfig
from ssmvision.recipes.fusion.crops import CropDataset, WholeDataset
from ssmvision.recipes.fusion.module import FusionModule
from ssmvision.recipes.fusion.network import build_network
from ssmvision.recipes.fusion.pairs import ImagePair, hold_out, read_pairs
from ssmvision.recipes.fusion.run_folder import FOLDER, check_config
from ssmvision.recipes.fusion.weights import FusionCard, save_model
from ssmvision.recipes.segmentation.lightning_trainer import check_accelerator, make_trainer, quiet_lightning
from ssmvision.recipes.segmentation.stopping import Checkpoints
from ssmvision.recipes.segmentation.writing import check_folder
from ssmvision.recipes.training.fitting import Finished, count_parameters, fit
from ssmvision.recipes.training.sampler import EpochSampler

__all__ = ["RunResult", "run", "train_pairs"]


@dataclass(frozen=True)
class RunResult(Finished):
    """See `Finished`.

    Args:
        weights: model.safetensors.
        validation: loss and terms at the end; empty without validation pairs.
    """

    weights: Path
    validation: dict[str, float]


def run(config: FusionTrainConfig) -> RunResult:
    """Trains, or continues a training, on the files of `config.data`, and saves the model.

    Raises:
        UserError: settings or data are unusable, or training diverged; a diverged run keeps its last checkpoint.
    """
    check_config(config)
    check_folder(Path(config.out))
    data = config.data
    pairs = read_pairs(data)
    training, validation = hold_out(pairs, data.validation_pairs, data.validation_fraction, config.trainer.seed)
    return train_pairs(config, training, validation)


def train_pairs(config: FusionTrainConfig, training: Sequence[ImagePair], validation: Sequence[ImagePair]) -> RunResult:
    """`run` on pairs that are in memory; `config.data` is only written down.

    Raises:
        UserError: see `run`.
    """
    started = time.monotonic()
    check_config(config)
    check_accelerator(config.trainer.accelerator)
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    seed_everything(config.trainer.seed, workers=True, verbose=False)
    module = FusionModule(build_network(config.model), config.loss, config.trainer)
    FOLDER.prepare(config)
    FOLDER.keep_settings(config)
    console = Console(stderr=True)
    announce(console, config, training, validation, module)
    history = FusionHistory(config.out, None if console.is_terminal else console)
    shown = Previews(config.out, (validation or training)[: config.trainer.previews])
    with quiet_lightning():
        # Stochastic depth is seeded by epoch: a run that is stopped goes on from the epoch before.
        checkpoints = Checkpoints(config.out, between=False)
        trainer = make_trainer(config.trainer, checkpoints, [history, shown], console.is_terminal, bool(validation))
        batches = loader(config, training, lambda: len(history.rows))
        whole = DataLoader(WholeDataset(validation), generator=torch.Generator()) if validation else None
        fit(
            *(trainer, module, batches, whole, checkpoints),
            resume=config.resume,
            validate_every=config.trainer.validate_every,
            memory_advice=lambda: (
                f"lower trainer.batch_size (now {config.trainer.batch_size}) or patch_size (now {config.patch_size})"
            ),
        )
    card = FusionCard(config.model, describe(config, training, validation, module, trainer))
    weights = save_model(config.out, module.result, card)
    console.print(f"saved {weights}", markup=False, highlight=False, soft_wrap=True)
    return RunResult(
        out=config.out,
        weights=weights,
        history=config.out / HISTORY,
        epochs=trainer.current_epoch,
        steps=trainer.global_step,
        seconds=time.monotonic() - started,
        validation=dict(module.validation),
        parameters=count_parameters(module.network),
    )


def announce(
    console: Console,
    config: FusionTrainConfig,
    training: Sequence[ImagePair],
    validation: Sequence[ImagePair],
    module: FusionModule,
) -> None:
    """Prints what is about to run."""
    m, t, loss = config.model, config.trainer, config.loss
    lines = (
        f"data      {_count(training)} for training, {_count(validation)} for validation",
        f"network   FusionMamba{' as published' if m.faithful else ''}, depths {_list(m.depths)} and "
        f"{_list(m.depths_decoder)}, dims {_list(m.dims)}, {count_parameters(module.network):,} parameters",
        f"loss      {loss.structure:g} structure ({loss.structure_form}) + {loss.intensity:g} intensity "
        f"({loss.intensity_target}) + {loss.gradient:g} gradient ({loss.gradient_form})",
        f"training  {t.max_epochs} epochs of {t.steps_per_epoch} steps, {t.batch_size} crops of "
        f"{'x'.join(str(n) for n in config.patch_size)}, AdamW lr {t.lr:g}, {t.precision}, seed {t.seed}",
        f"run       {config.out}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _list(values: Sequence[int]) -> str:
    return "-".join(str(value) for value in values)


def _count(pairs: Sequence[ImagePair]) -> str:
    groups = len({pair.group for pair in pairs})
    return f"{len(pairs)} image pair(s)" + (f" of {groups} file(s)" if groups != len(pairs) else "")


def loader(config: FusionTrainConfig, pairs: Sequence[ImagePair], current_epoch: Callable[[], int]) -> DataLoader[Any]:
    """Batches of training crops."""
    t = config.trainer
    return DataLoader(
        CropDataset(pairs, config.augment, config.patch_size, t.seed),
        batch_size=t.batch_size,
        sampler=EpochSampler(t.steps_per_epoch * t.batch_size, current_epoch),
        num_workers=config.data.num_workers,
        persistent_workers=config.data.num_workers > 0,
        # An own one: whether loading starts before or after an epoch is seeded differs after resuming.
        generator=torch.Generator(),
    )


def describe(
    config: FusionTrainConfig,
    training: Sequence[ImagePair],
    validation: Sequence[ImagePair],
    module: FusionModule,
    trainer: Trainer,
) -> dict[str, Any]:
    """The training entry of the model card; no paths, which may name people or places."""
    parts = {name: asdict(getattr(config, name)) for name in ("loss", "augment", "trainer")}
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "training_pairs": len(training),
        "validation_pairs": len(validation),
        "validation": {name: round(value, 6) for name, value in module.validation.items()},
        "settings": json.loads(json.dumps(parts | {"patch_size": config.patch_size})),
    }
