"""Finds where numbers stop being finite, so that a fault in training carries the name of the first bad module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["first_nonfinite_module", "first_nonfinite_parameter", "last_nonfinite_gradient"]


def first_nonfinite_parameter(network: nn.Module, gradients: bool = False) -> str | None:
    """Name of the first parameter with a non-finite value (or gradient), None if all are finite."""
    for name, parameter in network.named_parameters():
        value = parameter.grad if gradients else parameter
        if value is not None and not bool(torch.isfinite(value).all()):
            return name
    return None


def last_nonfinite_gradient(network: nn.Module) -> str | None:
    """Name of the last parameter whose gradient is not finite, None if all are.

    Gradients run from the output back to the input, and spoil everything on their way: the place where it began is the
    last in the network's order.
    """
    for name, parameter in reversed(list(network.named_parameters())):
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            return name
    return None


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    return all(_finite(v) for v in value) if isinstance(value, list | tuple) else True


def first_nonfinite_module(network: nn.Module, image: Tensor) -> str:
    """Runs the network once more and describes the first place where values are not finite.

    Args:
        network: any module.
        image: the batch on which the loss was not finite.
    """
    parameter = first_nonfinite_parameter(network)
    if parameter is not None:
        return f"parameter {parameter}"
    if not _finite(image):
        return "the input batch"
    found: list[str] = []
    handles = [
        module.register_forward_hook(
            lambda m, args, output, name=name: None if found or _finite(output) else found.append(name)
        )
        for name, module in network.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    return f"output of module {found[0]}" if found else "the loss itself (the network's output is finite)"
