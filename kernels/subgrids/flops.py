"""What `torch.utils.flop_counter` counts for the sub-grids: the convolution, as it would if that ran alone.

Importing this registers the formulas, as `ssmvision.layers.fusion_scan` does; it also imports the counter, and that
Triton.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from ssmvision.kernels.subgrids import op  # noqa: F401  (defines the operators)

__all__ = ["backward_flops", "forward_flops"]


@register_flop_formula(torch.ops.ssmvision.subgrid_conv)
def forward_flops(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Operations of a forward, for a (B, H, W, E) map and the operator's other arguments."""
    return 2 * prod(x) * prod(weight[1:])


@register_flop_formula(torch.ops.ssmvision.subgrid_conv_backward)
def backward_flops(x: Sequence[int], weight: Sequence[int], *args: Any, **kwargs: Any) -> int:
    """Operations of a backward: gradients of the map and of the weights; what is computed again does not count."""
    return 2 * forward_flops(x, weight)
