"""Parameter groups, optimiser and schedule of a classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import TrainerConfig
from ssmvision.recipes.training.schedule import warmup_cosine

__all__ = ["learning_rate", "make_optimizer"]


def learning_rate(step: int, config: TrainerConfig, steps_per_epoch: int) -> float:
    """Share of the largest learning rate at a step: linear to 1, then half a cosine to 0."""
    return warmup_cosine(step, round(config.warmup_epochs * steps_per_epoch), config.max_epochs * steps_per_epoch)


def make_optimizer(network: nn.Module, config: TrainerConfig, steps_per_epoch: int) -> Any:
    """The optimiser of that name in timm and the schedule, as Lightning takes them.

    Networks with learning rates of their own (S4ND's state-space parameters) keep them; all rates follow the schedule.

    Raises:
        UserError: timm knows no such optimiser, or it does not go with the settings.
    """
    own_rates = getattr(network, "param_groups", None)
    if callable(own_rates) and config.layer_decay is not None:
        raise UserError(
            f"trainer.layer_decay: {config.layer_decay} is not possible with {type(network).__name__}, whose layers "
            "have learning rates of their own; give null"
        )
    parameters = own_rates(config.lr, config.weight_decay) if callable(own_rates) else network
    try:
        optimizer = create_optimizer_v2(
            parameters,
            opt=config.optimizer,
            lr=config.lr,
            weight_decay=0.0 if callable(own_rates) else config.weight_decay,
            layer_decay=config.layer_decay,
        )
    except (ValueError, TypeError, AssertionError, RuntimeError) as error:
        raise UserError(f"trainer.optimizer: timm cannot make {config.optimizer!r} ({error}); try adamw") from error
    shares = [float(group.get("lr_scale", 1.0)) for group in optimizer.param_groups]

    def rule(share: float) -> Callable[[int], float]:
        return lambda step: share * learning_rate(step, config, steps_per_epoch)

    schedule = LambdaLR(optimizer, [rule(share) for share in shares])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
