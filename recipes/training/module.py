"""What the recipes' Lightning modules share: a moving average of the weights, and steps that must be finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.nonfinite import first_nonfinite_parameter

__all__ = ["FiniteModule", "TrainingModule"]


Average = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]


def _moving_average(decay: float) -> Average:
    """Torch's, which would round whole numbers such as tables of indices down; those are taken over as they are."""
    mean = get_ema_multi_avg_fn(decay)

    def follow(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        if averaged[0].is_floating_point():
            mean(averaged, current, count)
            return
        for old, new in zip(averaged, current, strict=True):
            old.copy_(new)

    return follow


class TrainingModule(LightningModule):
    """A network that is trained, and the moving average of its weights, if there is to be one.

    Args:
        network: is trained.
        ema_decay: of the average; 0: none.

    Attributes:
        average: of the weights.
        validation: numbers of the latest validation, by name.
    """

    def __init__(self, network: nn.Module, ema_decay: float) -> None:
        super().__init__()
        self.network = network
        self.average: AveragedModel | None = None
        if ema_decay:
            self.average = AveragedModel(network, multi_avg_fn=_moving_average(ema_decay), use_buffers=True)
            self.average.requires_grad_(False)  # else DDP would wait for its gradients
        self.validation: dict[str, float] = {}

    @property
    def result(self) -> nn.Module:
        """The network that is validated and saved: the moving average, if there is one."""
        return self.network if self.average is None else self.average.module

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """One step, which the moving average follows before anything is saved."""
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.average is not None:
            self.average.update_parameters(self.network)


class FiniteModule(TrainingModule):
    """Ends the run at the first loss or gradient that is not finite.

    Args:
        network: is trained.
        ema_decay: of the average; 0: none.
        lr: largest learning rate, for the message.
        gradient_clip: largest norm of the gradients; 0: they are not clipped.
    """

    def __init__(self, network: nn.Module, ema_decay: float, lr: float, gradient_clip: float) -> None:
        super().__init__(network, ema_decay)
        self.lr, self.gradient_clip = lr, gradient_clip

    def stop(self, what: str, where: str) -> NoReturn:
        """Ends the run.

        Raises:
            UserError: always, with the place and what to do.
        """
        raise UserError(
            f"training stopped at epoch {self.current_epoch + 1}, step {self.global_step + 1}: {what}; "
            f"first non-finite: {where}. Lower trainer.lr (now {self.lr:g}) or use trainer.precision=32-true; "
            "last.ckpt holds the last good epoch"
        )

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by norm, and refuses to step on gradients that are not finite."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip or math.inf)
        if not bool(torch.isfinite(norm)):
            name = first_nonfinite_parameter(self.network, gradients=True)
            self.stop(f"gradient norm is {norm.item()}", f"gradient of {name}" if name else "the norm of all gradients")
