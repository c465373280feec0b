"""Optimizer groups for networks with S4ND layers: the state-space parameters' own learning rates and no decay.

Source: the training code of Gu et al. and Nguyen et al. (arXiv 2210.06583, appendix D): A, B, P and the step sizes
never decay, C and D do; a learning rate by kind, or one for all of A, B, C, P and the step sizes.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from ssmvision.layers.s4nd_kernel import AxisKernel

__all__ = ["param_groups"]


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    decay_vectors: bool = True,
    spared: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Parameters of any model in groups of equal learning rate and weight decay, for torch's optimizers.

    Args:
        model: with or without S4ND layers; frozen parameters are left out.
        lr, weight_decay: of parameters without a rule of their own.
        decay_vectors: whether biases, norm weights and other parameters of one axis decay.
        spared: names of further parameters that do not decay.

    Returns:
        dicts with "params", "lr" and "weight_decay".
    """
    rules: dict[int, dict[str, float]] = {}
    for module in model.modules():
        if isinstance(module, AxisKernel):
            rules |= {id(getattr(module, name)): rule for name, rule in module.rules.items()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rule = rules.get(id(parameter), {})
        decays = (decay_vectors or parameter.dim() > 1) and name not in spared
        decay = weight_decay if decays else 0.0
        groups.setdefault((rule.get("lr", lr), rule.get("weight_decay", decay)), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]
