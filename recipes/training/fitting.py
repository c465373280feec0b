"""Runs a training from its last checkpoint to its last validation, and says in one line what went wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.checkpoints import LAST, PREVIOUS
from ssmvision.recipes.segmentation.faults import LoaderFaults
from ssmvision.recipes.segmentation.stopping import Checkpoints, interruptible
from ssmvision.recipes.training.module import TrainingModule

__all__ = ["Finished", "count_parameters", "fit"]


@dataclass(frozen=True)
class Finished:
    """What every training leaves behind.

    Args:
        out: run folder.
        history: metrics.csv, one line per epoch.
        epochs, steps: done in all, earlier parts of a resumed run included.
        seconds: of this call.
        parameters: of the network.
    """

    out: Path
    history: Path
    epochs: int
    steps: int
    seconds: float
    parameters: int


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def fit(
    trainer: Trainer,
    module: TrainingModule,
    batches: Iterable[Any],
    validation: Iterable[Any] | None,
    checkpoints: Checkpoints,
    *,
    resume: bool,
    validate_every: int,
    memory_advice: Callable[[], str],
) -> None:
    """Runs the epochs, and a validation if the last epoch had none.

    Args:
        trainer: with `checkpoints` among its callbacks.
        module: to train.
        batches: to train on.
        validation: to validate on, if there is anything.
        checkpoints: of the run folder.
        resume: go on from the folder's checkpoint, if it has one.
        validate_every: epochs.
        memory_advice: what to say after the device's memory was too small.

    Raises:
        UserError: a worker of the loader failed, or the device's memory is too small.
    """
    last = checkpoints.path
    saved = any(last.with_name(name).is_file() for name in (LAST, PREVIOUS))
    full = ""
    faults = LoaderFaults(batches) if isinstance(batches, DataLoader) else None
    if faults is not None:
        trainer.callbacks.append(faults)  # type: ignore[attr-defined]
    with interruptible(trainer), faults.told() if faults else nullcontext(), warnings.catch_warnings():
        if validation is None:
            warnings.filterwarnings("ignore", message=".*no `val_dataloader`")
        try:
            start = str(last) if resume and saved else None
            trainer.fit(module, batches, validation, ckpt_path=start, weights_only=True)
        except RuntimeError as error:
            if checkpoints.received is not None:
                checkpoints.end(trainer)  # whoever told this process to stop has ended its workers
            if not isinstance(error, torch.OutOfMemoryError):
                raise
            full = str(error).partition(". GPU")[0].partition("\n")[0]
    if full:  # out of the handler, whose traceback would keep the tensors
        raise UserError(f"out of memory in training ({full}); {memory_advice()}")
    every = min(validate_every, trainer.max_epochs or validate_every)
    if validation is not None and (trainer.current_epoch % every or not module.validation):
        trainer.validate(module, validation, verbose=False)
