"""Parameter groups, optimiser and schedule by nnU-Net's rules."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ssmvision.recipes.segmentation.config import TrainerConfig

__all__ = ["learning_rate", "make_optimizer", "parameter_groups"]

POLY_POWER = 0.9


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels with decay; A_log, D, biases and norms without."""
    exempt: set[str] = set()
    for prefix, module in network.named_modules():
        names = getattr(module, "no_weight_decay", None)
        if callable(names):
            exempt |= {f"{prefix}.{name}" if prefix else name for name in names()}
    trained = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    plain = [p for n, p in trained if n in exempt or p.ndim <= 1]
    decayed = [p for n, p in trained if not (n in exempt or p.ndim <= 1)]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def learning_rate(step: int, config: TrainerConfig) -> float:
    """Share of the first learning rate at a step, (1 - t / T)^0.9, in steps or in epochs.

    A function of the step alone: a resumed run takes its length from the settings, not from the checkpoint.
    """
    done = step // config.steps_per_epoch / config.max_epochs
    if config.poly_per == "step":
        done = step / (config.max_epochs * config.steps_per_epoch)
    return float(max(0.0, 1 - done) ** POLY_POWER)


def make_optimizer(network: nn.Module, config: TrainerConfig) -> Any:
    """SGD or AdamW and the schedule, as Lightning takes them."""
    groups = parameter_groups(network, config.weight_decay)
    optimizer: Optimizer = (
        SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)
        if config.optimizer == "sgd"
        else AdamW(groups, lr=config.lr)
    )
    schedule = LambdaLR(optimizer, lambda step: learning_rate(step, config))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
