"""Outer products of complex kernels as sums of outer products of real ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["real_ranks"]


def real_ranks(kernels: Sequence[Tensor]) -> list[Tensor]:
    """Real kernels of rank 2^(d-1) whose sums of outer products are the parts of a complex outer product.

    The real part of a product of d complex numbers is the sum of the products with an even number of imaginary
    factors, the imaginary part that with an odd number, with the sign of i^count.

    Args:
        kernels: of each axis a (2, H, T_a), the real part first.

    Returns:
        of each axis (2^(d-1), 2, H, T_a) for `long_conv_nd`: its channel 0 is the real part of the N-D kernel, its
        channel 1 the imaginary part.
    """
    *leading, last = kernels
    choices = [tuple(rank >> a & 1 for a in range(len(leading))) for rank in range(1 << len(leading))]
    ranks = [
        torch.stack([kernel[choice[a]].expand(2, -1, -1) for choice in choices]) for a, kernel in enumerate(leading)
    ]
    final = [torch.stack([_signed(last, sum(choice), part) for part in (0, 1)]) for choice in choices]
    return [*ranks, torch.stack(final)]


def _signed(kernel: Tensor, imaginary: int, part: int) -> Tensor:
    """The last factor of a product with so many imaginary factors before it, for a part of the product."""
    own = (imaginary + part) % 2
    return -kernel[own] if (imaginary + own) % 4 > 1 else kernel[own]
