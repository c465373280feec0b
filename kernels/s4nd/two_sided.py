"""From the two halves of a bidirectional kernel to one with lags of both signs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["AxisKernels", "two_sided"]


class AxisKernels(NamedTuple):
    """The kernels of one layer, as `long_conv_nd` takes them.

    Attributes:
        taps: (R, C, H, T) of each axis.
        centers: index of lag 0 in each.
    """

    taps: tuple[Tensor, ...]
    centers: tuple[int, ...]


def two_sided(halves: Tensor, symmetric: bool = False) -> Tensor:
    """One kernel of both halves.

    Args:
        halves: (..., 2 C, H, L), first the causal kernels from lag 0 on, then the anticausal ones from lag -1 down.
        symmetric: split every tap, the integral over a step, between the two lags that bound the step; both halves
            then share lag 0.

    Returns:
        (..., C, H, 2 L) with lag 0 at index L, or for `symmetric` (..., C, H, 2 L - 1) with lag 0 at L - 1.
    """
    causal, anticausal = halves.chunk(2, -3)
    if not symmetric:
        return torch.cat((anticausal.flip(-1), causal), -1)
    center = (causal[..., :1] + anticausal[..., :1]) / 2
    later, earlier = ((half[..., 1:] + half[..., :-1]) / 2 for half in (causal, anticausal))
    return torch.cat((earlier.flip(-1), center, later), -1)
