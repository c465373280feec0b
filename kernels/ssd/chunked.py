"""Chunked SSD in PyTorch: matrix products inside chunks, and one state a chunk carried between them.

Source: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060), section 6: within a chunk the layer is masked attention,
y = (L o C B^T) (delta x) with L_ts = exp(a_{s+1} + ... + a_t), a = delta A. The backward is that of these products; the
gradient of a_t is what all paths across step t carry, collected inside the chunk and at its end.

Letters: m rows (batch and routes), c chunks, g groups, h heads of a group, t and s steps of a chunk, n states, p head
width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.ssd.config import SPAN
from ssmvision.kernels.ssd.products import product

__all__ = ["ChunkGrads", "Chunks", "backward", "forward"]

Multiply = Callable[[str, Tensor, Tensor], Tensor]


class Chunks(NamedTuple):
    """Inputs of all chunks.

    Attributes:
        u: (m, c, g, t, h, p) delta x.
        a: (m, c, g, h, t) delta A.
        B, C: (m, c, g, t, n).
    """

    u: Tensor
    a: Tensor
    B: Tensor
    C: Tensor


class ChunkGrads(NamedTuple):
    """Gradients of `Chunks`, in its shapes."""

    u: Tensor
    a: Tensor
    B: Tensor
    C: Tensor


class _Decays(NamedTuple):
    """Products of the decays of some steps.

    Attributes:
        between: (m, c, g, h, t, s) after step s, up to step t; zero above the diagonal.
        from_entry, to_exit: (m, c, g, t, h, 1) up to step t; after it.
    """

    between: Tensor
    from_entry: Tensor
    to_exit: Tensor


def _sums_up_to(a: Tensor) -> Tensor:
    """a_0 + ... + a_t (..., t) in float64, so that differences of these sums keep the digits of single precision.

    By a product, since CUDA's cumulative sum takes a square of memory where algorithms must be deterministic.
    """
    return a.double() @ a.new_ones(a.shape[-1], a.shape[-1], dtype=torch.float64).triu()


def _between(a: Tensor) -> Tensor:
    """exp(a_{s+1} + ... + a_t) for t >= s, else 0: (..., t) -> (..., t, s)."""
    total = _sums_up_to(a)
    return (total.unsqueeze(-1) - total.unsqueeze(-2)).to(a.dtype).exp().tril()


def _decays(a: Tensor) -> _Decays:
    between = _between(a)
    from_entry, to_exit = _sums_up_to(a).to(a.dtype).exp(), between[..., -1, :]
    return _Decays(between, *(t.transpose(-1, -2).unsqueeze(-1) for t in (from_entry, to_exit)))


def _carry(total: Tensor, added: Tensor) -> Tensor:
    """States from zero by h_{c+1} = exp(total_c) h_c + added_c.

    Args:
        total: (m, c, g, h).
        added: (m, c, g, n, h, p).

    Returns:
        (m, c + 1, g, n, h, p): at the entry of every chunk, and after the last.
    """
    carried, pieces = torch.zeros_like(added[:, :1]), []
    for totals, news in zip(total.split(SPAN, 1), added.split(SPAN, 1), strict=True):
        decay = _between(torch.nn.functional.pad(totals, (0, 0, 0, 0, 1, 0)).movedim(1, -1))
        states = torch.einsum("mghij,mjgnhp->mignhp", decay, torch.cat([carried, news], 1))
        pieces.append(states[:, :-1])
        carried = states[:, -1:]
    return torch.cat([*pieces, carried], 1)


def _states(chunks: Chunks, decays: _Decays, multiply: Multiply) -> Tensor:
    added = multiply("mcgsn,mcgshp->mcgnhp", chunks.B, chunks.u * decays.to_exit)
    return _carry(chunks.a.sum(-1), added)


def forward(chunks: Chunks, dtype: torch.dtype) -> Tensor:
    """Outputs (m, c, g, t, h, p), with matrix products computed in `dtype`."""
    multiply = partial(product, dtype)
    decays = _decays(chunks.a)
    scores = multiply("mcgtn,mcgsn->mcgts", chunks.C, chunks.B)
    inside = multiply("mcghts,mcgshp->mcgthp", scores.unsqueeze(3) * decays.between, chunks.u)
    entry = _states(chunks, decays, multiply)[:, :-1]
    return inside.addcmul_(multiply("mcgtn,mcgnhp->mcgthp", chunks.C, entry), decays.from_entry)


def backward(chunks: Chunks, dy: Tensor, dtype: torch.dtype) -> ChunkGrads:
    """Gradients for that of y, dy (m, c, g, t, h, p), with matrix products computed in `dtype`."""
    multiply = partial(product, dtype)
    u, a, B, C = chunks
    decays = _decays(a)
    scores = multiply("mcgtn,mcgsn->mcgts", C, B)
    weights = scores.unsqueeze(3) * decays.between
    du = multiply("mcghts,mcgthp->mcgshp", weights, dy)
    dweights = multiply("mcgthp,mcgshp->mcghts", dy, u)
    dscores = (dweights * decays.between).sum(3)
    dC, dB = multiply("mcgts,mcgsn->mcgtn", dscores, B), multiply("mcgts,mcgtn->mcgsn", dscores, C)
    paths = weights * dweights
    arriving = paths.sum(-1) - paths.sum(-2)  # at each step less what leaves it

    states = _states(chunks, decays, multiply)
    dread = dy * decays.from_entry
    dC += multiply("mcgthp,mcgnhp->mcgtn", dread, states[:, :-1])
    read = multiply("mcgtn,mcgnhp->mcgthp", C, states[:, :-1])
    arriving += (read * dread).sum(-1).transpose(-1, -2)

    filled = multiply("mcgtn,mcgthp->mcgnhp", C, dread)
    dexit = _carry(a.sum(-1).flip(1), filled.flip(1))[:, :-1].flip(1)
    dfill = multiply("mcgsn,mcgnhp->mcgshp", B, dexit) * decays.to_exit
    du += dfill
    dB += multiply("mcgshp,mcgnhp->mcgsn", u * decays.to_exit, dexit)
    arriving -= (dfill * u).sum(-1).transpose(-1, -2)

    across = (dexit * states[:, 1:]).sum((-1, -3)).unsqueeze(-1)
    da = _sums_up_to(arriving.flip(-1)).flip(-1).to(a.dtype) + across
    return ChunkGrads(du, da, dB, dC)
