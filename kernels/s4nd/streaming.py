"""One axis of the long convolution as a recurrence over slabs: a volume of any length in bounded memory, no seams.

Between slabs only the states of the systems are kept, S real numbers for each position of the other axes; within a slab
the recurrence is a few matrix products (the chunked form of Mamba-2, Dao and Gu, arXiv 2405.21060, section 6, for
systems that do not depend on the input). The result is that of a kernel as long as the axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.linear_system import System, impulse_response
from ssmvision.kernels.s4nd.toeplitz import toeplitz

__all__ = ["SlabOperators", "slab_operators", "stream_axis", "stream_slab"]


class SlabOperators(NamedTuple):
    """What a slab of Q positions does to input and state.

    Attributes:
        response: (C, H, Q, Q) from the slab's input to its output.
        observe: (C, H, Q, S) from the state before the slab to its output.
        absorb: (H, S, Q) from the slab's input to the state after it.
        advance: (H, S, S) from the state before the slab to the one after it.
    """

    response: Tensor
    observe: Tensor
    absorb: Tensor
    advance: Tensor


def slab_operators(system: System, length: int, delay: int = 0) -> SlabOperators:
    """Operators of a slab.

    Args:
        system: H systems with C outputs.
        length: Q.
        delay: 0 lets a position see itself; 1 starts at the position before it, as the anticausal half of a
            bidirectional kernel does.

    Raises:
        ValueError: another delay, or an empty slab.
    """
    if delay not in (0, 1) or length < 1:
        raise ValueError(f"delay must be 0 or 1 and the slab not empty, got {delay} and {length}")
    powers = [system.B]
    rows = [torch.einsum("chs,hst->cht", system.C, system.A) if delay == 0 else system.C]
    for _ in range(length - 1):
        powers.append(torch.einsum("hst,ht->hs", system.A, powers[-1]))
        rows.append(torch.einsum("chs,hst->cht", rows[-1], system.A))
    kernel = torch.nn.functional.pad(impulse_response(system, length), (delay, 0))[..., :length]
    return SlabOperators(
        toeplitz(kernel, 0, length),
        torch.stack(rows, -2),
        torch.stack(powers[::-1], -1),
        torch.linalg.matrix_power(system.A, length),
    )


def stream_slab(u: Tensor, state: Tensor | None, operators: SlabOperators) -> tuple[Tensor, Tensor]:
    """Output of one slab and the state after it.

    Args:
        u: (B, H, Q, ...).
        state: (B, H, S, ...) before the slab; None for zero.
        operators: of slabs of this length.

    Returns:
        y (B, C, H, Q, ...) and the state (B, H, S, ...), in the operators' dtype.

    Raises:
        ValueError: the slab has another length than the operators.
    """
    length = operators.response.shape[-1]
    if u.shape[2] != length:
        raise ValueError(f"the operators are for slabs of {length} positions, got {u.shape[2]}")
    tail = tuple(u.shape[3:])
    flat = u.to(operators.response.dtype).flatten(3) if tail else u.to(operators.response.dtype).unsqueeze(-1)
    y = torch.einsum("chij,bhjm->bchim", operators.response, flat)
    after = torch.einsum("hsj,bhjm->bhsm", operators.absorb, flat)
    if state is not None:
        before = state.reshape(*state.shape[:3], -1)
        y = y + torch.einsum("chis,bhsm->bchim", operators.observe, before)
        after = after + torch.einsum("hst,bhtm->bhsm", operators.advance, before)
    return y.reshape(*y.shape[:4], *tail), after.reshape(*after.shape[:3], *tail)


def stream_axis(slabs: Iterable[Tensor], system: System, *, anticausal: bool = False) -> Iterator[Tensor]:
    """Outputs slab by slab; a bidirectional convolution is the sum of a causal sweep and an anticausal one.

    Args:
        slabs: (B, H, Q, ...) one after the other along the axis, each of any length; for `anticausal` from the last
            to the first.
        system: its impulse response is the causal kernel from lag 0 on; for `anticausal`, the one from lag -1 down.
        anticausal: whether later positions act on earlier ones.

    Yields:
        (B, C, H, Q, ...) in the order of `slabs`.
    """
    state: Tensor | None = None
    operators: dict[int, SlabOperators] = {}
    for slab in slabs:
        length = slab.shape[2]
        if length not in operators:
            operators[length] = slab_operators(system, length, delay=int(anticausal))
        u = slab.flip(2) if anticausal else slab
        y, state = stream_slab(u, state, operators[length])
        yield y.flip(3) if anticausal else y
