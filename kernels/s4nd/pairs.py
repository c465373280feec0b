"""Complex arithmetic on pairs of real tensors: TorchInductor fuses it, and it runs on devices without complex types."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pair", "add", "conj", "div", "exp", "expm1", "from_last_axis", "mul", "scale", "to_last_axis"]


class Pair(NamedTuple):
    """A complex tensor: real and imaginary part, of one shape or broadcasting to one."""

    re: Tensor
    im: Tensor


def from_last_axis(t: Tensor) -> Pair:
    """(..., 2) as stored in checkpoints -> a pair of (...)."""
    return Pair(t[..., 0], t[..., 1])


def to_last_axis(a: Pair) -> Tensor:
    """A pair of (...) -> (..., 2)."""
    return torch.stack((a.re, a.im), -1)


def add(a: Pair, b: Pair) -> Pair:
    """The sum a + b."""
    return Pair(a.re + b.re, a.im + b.im)


def scale(a: Pair, factor: Tensor | float) -> Pair:
    """The product of a and a real factor."""
    return Pair(a.re * factor, a.im * factor)


def mul(a: Pair, b: Pair) -> Pair:
    """The product a b."""
    return Pair(a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re)


def conj(a: Pair) -> Pair:
    """The complex conjugate."""
    return Pair(a.re, -a.im)


def div(a: Pair, b: Pair) -> Pair:
    """The quotient a / b."""
    return scale(mul(a, conj(b)), (b.re * b.re + b.im * b.im).reciprocal())


def exp(a: Pair) -> Pair:
    """e^a."""
    size = torch.exp(a.re)
    return Pair(size * torch.cos(a.im), size * torch.sin(a.im))


def expm1(a: Pair) -> Pair:
    """e^a - 1, accurate for small a."""
    half = torch.sin(a.im / 2)
    return Pair(torch.expm1(a.re) * torch.cos(a.im) - 2 * half * half, torch.exp(a.re) * torch.sin(a.im))
