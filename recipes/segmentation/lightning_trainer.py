"""Lightning's trainer as both training recipes use it: quiet, with our checkpoints, on one device or several."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar, Timer

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.checkpoints import SafeCheckpointIO
from ssmvision.recipes.segmentation.stopping import Checkpoints

__all__ = ["TrainerSettings", "check_accelerator", "make_trainer", "quiet_lightning"]

# Warnings that tell the user nothing: few loader workers are the caller's choice, the folder is ours, the third is
# Lightning's own affair, a time budget may be lifted on resuming, batches are a function of the step, and
# float16 without a GPU is refused.
EXPECTED = (
    "does not have many workers",
    "Checkpoint directory",
    "isinstance.treespec, LeafSpec",
    r"callbacks: \['Timer'\]",
    "resuming from a checkpoint that ended before the epoch ended",
    "AMP with fp16 is not supported on CPU",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps Lightning's notices (hardware list, product tips) out of the run's own output; warnings stay."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in EXPECTED:
                warnings.filterwarnings("ignore", message=f".*{message}.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_accelerator(name: str, devices: int = 1) -> None:
    """Lets Lightning look for the devices before any data are read.

    Raises:
        UserError: it knows no such accelerator, or this machine has none or too few.
    """
    try:
        with quiet_lightning():
            Trainer(
                accelerator=name, devices=devices, logger=False, enable_checkpointing=False, enable_progress_bar=False
            )
    except (MisconfigurationException, ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        if devices > 1:
            raise UserError(f"trainer.devices: {devices} cannot be used ({reason}); give fewer") from error
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
    settings: TrainerSettings,
    checkpoints: Checkpoints,
    callbacks: Sequence[Callback],
    terminal: bool,
    validate: bool,
    devices: int = 1,
) -> Trainer:
    """Lightning's trainer with our checkpoints, time budget and, on a terminal, a progress bar.

    Args:
        settings: of the recipe.
        checkpoints: where and when to save.
        callbacks: further ones.
        terminal: whether to draw a progress bar.
        validate: whether there are cases to validate on.
        devices: processes that train together by DDP; this is one of them, see `ranks`.

    Raises:
        UserError: the device does not compute in that precision.
    """
    t = settings
    budget = [] if t.max_minutes is None else [timedelta(minutes=t.max_minutes)]
    timers = [Timer(limit, interval="epoch", verbose=False) for limit in budget]
    bars = [RichProgressBar()] if terminal else []
    if t.deterministic:
        # PyTorch would also fill every new tensor, 4 % of UMambaEnc's step, for code that reads what nobody wrote.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer = Trainer(
        default_root_dir=checkpoints.path.parent,
        accelerator=t.accelerator,
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=t.precision,
        max_epochs=t.max_epochs,
        deterministic="warn" if t.deterministic else False,
        check_val_every_n_epoch=min(t.validate_every, t.max_epochs),
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=False,
        callbacks=[*callbacks, checkpoints, *timers, *bars],
        plugins=[SafeCheckpointIO(), *([LightningEnvironment()] if devices > 1 else [])],
        use_distributed_sampler=False,
        enable_progress_bar=terminal,
        enable_model_summary=False,
    )
    _check_precision(trainer, t.precision)
    return trainer


def _check_precision(trainer: Trainer, wanted: str) -> None:
    """Lightning would take another one with a warning."""
    used = trainer.precision_plugin.precision
    if used != wanted:
        raise UserError(f"trainer.precision: {wanted!r} needs a GPU; give {used!r} or 32-true")
