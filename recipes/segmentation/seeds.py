"""Random numbers as a function of the step: nothing of their state has to survive an interruption."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

__all__ = ["StepSeeds", "seed_step"]


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seeds Python, NumPy and torch (CPU and every GPU) for one step of one process."""
    value = int(np.random.SeedSequence([seed, 2, step, rank]).generate_state(1)[0])
    random.seed(value)
    np.random.seed(value)  # noqa: NPY002 - some library code draws from the global generator
    torch.manual_seed(value)


class StepSeeds(Callback):
    """Seeds every training step, so that a run resumed at any step draws what an unbroken one would have.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Before the step."""
        seed_step(self.seed, trainer.global_step, trainer.global_rank)
