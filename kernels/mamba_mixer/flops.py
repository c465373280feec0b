"""What `torch.utils.flop_counter` counts for the mixer: as for its layers one by one, so not the scan's arithmetic.

Importing this registers the formulas, as `ssmvision.layers.mamba` does; it also imports the counter, and that Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from ssmvision.kernels.mamba_mixer import op  # noqa: F401  (defines the operators)

__all__ = ["backward_flops", "forward_flops"]

Shape = Sequence[int]


def _per_token(parameters: Sequence[Shape], routes: int) -> int:
    """Multiplications a token: one for each element of a projection's or a convolution's weight."""
    bias = len(parameters[1]) == 1
    ends = [parameters[0], parameters[2 if bias else 1]]
    convolutions = parameters[4 if bias else 2 :][:routes]
    x_and_dt = parameters[-5 * routes : -3 * routes]
    return sum(prod(shape) for shape in (*ends, *convolutions, *x_and_dt))


@register_flop_formula(torch.ops.ssmvision.mamba_mixer)
def forward_flops(tokens: Shape, parameters: Sequence[Shape], routes: str, *args: Any, **kwargs: Any) -> int:
    """Operations of a forward, for (B, L, D) tokens and the operator's other arguments."""
    return 2 * prod(tokens[:2]) * _per_token(parameters, len(routes.split(",")))


@register_flop_formula(torch.ops.ssmvision.mamba_mixer_backward)
def backward_flops(
    dout: Shape,
    tokens: Shape,
    parameters: Sequence[Shape],
    kept: Sequence[Shape],
    low: Shape,
    exact: Shape,
    routes: str,
    *args: Any,
    **kwargs: Any,
) -> int:
    """Operations of a backward: gradients of every product's two factors; what is computed again does not count."""
    return 2 * forward_flops(tokens, parameters, routes)
