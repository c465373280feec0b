"""The mixer's parameters as users hold them, one tensor a direction, and as the kernels want them, stacked and cast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Parameters", "Sizes", "Weights", "sizes_of"]

PER_ROUTE = 7  # fields of `Parameters` with one tensor a direction


class Parameters(NamedTuple):
    """Tensors of one direction in tuples of K.

    Shapes: in_weight (2E, D), in_bias (2E,), out_weight (D, E), out_bias (D,); conv_weight (E, W) or (E, 1, W),
    conv_bias (E,), none for no bias; x_weight (R + 2N, E); dt_weight (E, R); dt_bias (E,); A_log (E, N); D (E,).
    """

    in_weight: Tensor
    in_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    conv_weight: tuple[Tensor, ...]
    conv_bias: tuple[Tensor, ...]
    x_weight: tuple[Tensor, ...]
    dt_weight: tuple[Tensor, ...]
    dt_bias: tuple[Tensor, ...]
    A_log: tuple[Tensor, ...]
    D: tuple[Tensor, ...]

    def flat(self) -> list[Tensor]:
        """All tensors, field by field."""
        found: list[Tensor] = []
        for value in self:
            if isinstance(value, tuple):
                found += value
            elif value is not None:
                found.append(value)
        return found

    @classmethod
    def from_flat(cls, flat: Sequence[Tensor], routes: int) -> Parameters:
        """The inverse of `flat`; what is there follows from the number of tensors and their axes."""
        bias = flat[1].dim() == 1
        ends = 4 if bias else 2
        groups = [tuple(flat[i : i + routes]) for i in range(ends, len(flat), routes)]
        if len(groups) < PER_ROUTE:
            groups.insert(1, ())
        if bias:
            return cls(flat[0], flat[1], flat[2], flat[3], *groups)
        return cls(flat[0], None, flat[1], None, *groups)


class Weights(NamedTuple):
    """Parameters stacked over the directions: projections in the compute dtype, the others in at least float32.

    Shapes: as in `Parameters`, with K in front where there is one a direction; conv_weight (K, E, W); A = -exp(A_log).
    The operator's gradients come in the same form, of A_log in A's place.
    """

    in_weight: Tensor
    in_bias: Tensor | None
    out_weight: Tensor
    out_bias: Tensor | None
    conv_weight: Tensor
    conv_bias: Tensor | None
    x_weight: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor


class Sizes(NamedTuple):
    """Sizes of a mixer: width of the tokens, inner width, directions, rank of the step size, states, taps."""

    dim: int
    inner: int
    routes: int
    rank: int
    state: int
    taps: int
    bias: bool
    conv_bias: bool


def sizes_of(p: Parameters) -> Sizes:
    """Read the sizes off the parameters."""
    dim, inner = p.out_weight.shape
    state, routes = p.A_log[0].shape[-1], len(p.A_log)
    taps = p.conv_weight[0].shape[-1]
    rank = p.dt_weight[0].shape[-1]
    return Sizes(dim, inner, routes, rank, state, taps, p.in_bias is not None, bool(p.conv_bias))
