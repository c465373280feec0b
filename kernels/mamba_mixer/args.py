"""The mixer's parameters as users hold them, one tensor a direction, and as the kernels want them, stacked and cast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

__all__ = ["Parameters", "Sizes", "Weights", "sizes_of"]

# Fields of `Parameters` with one tensor a direction, in the operator's order.
PER_ROUTE = ("conv_weight", "conv_bias", "x_weight", "dt_weight", "dt_bias", "A_log", "D")


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
        """All tensors: those of the projections first, then field by field."""
        ends = [t for t in (self.in_weight, self.in_bias, self.out_weight, self.out_bias) if t is not None]
        return ends + [t for name in PER_ROUTE for t in getattr(self, name)]

    @classmethod
    def from_flat(cls, flat: Sequence[Tensor], routes: int) -> Parameters:
        """The inverse of `flat`; what is there follows from the number of tensors and their axes."""
        bias = flat[1].dim() == 1
        ends = 4 if bias else 2
        fields = (len(flat) - ends) // routes
        groups = [tuple(flat[i : i + routes]) for i in range(ends, len(flat), routes)]
        if fields < len(PER_ROUTE):
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
