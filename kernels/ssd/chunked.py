"""Chunked SSD in PyTorch: matrix products inside chunks, and one state a chunk carried between them.

Source: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060), section 6: within a chunk the layer is masked attention,
y = (L o C B^T) (delta x) with L_ts = exp(a_{s+1} + ... + a_t), a = delta A. The backward is that of these products; the
gradient of a_t is what all paths across step t carry, collected inside the chunk and at its end.

Letters: m rows (batch and routes), c chunks, g groups, h heads of a group, t and s steps of a chunk, n states, p head
width. Operands of matrix products are in u's dtype, decays and what they sum up to in a's, which is no narrower.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.ssd.config import SPAN, STEPS
from ssmvision.kernels.ssd.products import scaled

__all__ = ["ChunkGrads", "Chunks", "backward", "forward"]


class Chunks(NamedTuple):
    """Inputs of all chunks.

    Attributes:
        u: (m, c, g, h, t, p) delta x.
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
        between: (m, c, g, h, t, s) after step s, up to step t; without meaning, or infinite, above the diagonal.
        from_entry, to_exit: (m, c, g, h, t, 1) up to step t; after it.
    """

    between: Tensor
    from_entry: Tensor
    to_exit: Tensor


def _sums_up_to(a: Tensor) -> Tensor:
    """a_0 + ... + a_t (..., t) in float64, so that differences of these sums keep the digits of single precision.

    By a product, since CUDA's cumulative sum takes a square of memory where algorithms must be deterministic.
    """
    return a.double() @ a.new_ones(a.shape[-1], a.shape[-1], dtype=torch.float64).triu()


def _between(total: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(total_t - total_s) (..., t, s); the differences alone are computed in total's dtype."""
    out = torch.empty(*total.shape, total.shape[-1], dtype=dtype, device=total.device)
    return torch.sub(total.unsqueeze(-1), total.unsqueeze(-2), out=out).exp_()


def _decays(a: Tensor) -> _Decays:
    total = _sums_up_to(a)
    between = _between(total, a.dtype)
    return _Decays(between, total.to(a.dtype).exp_().unsqueeze(-1), between[..., -1, :].unsqueeze(-1))


def _by_time(t: Tensor) -> Tensor:
    """(m, c, g, h, t, p) -> (m, c, g, t, h, p), and back."""
    return t.transpose(3, 4)


def _states(a: Tensor, added: Tensor, back: bool = False) -> Tensor:
    """States that no chunk has changed yet, by h_{c+1} = exp(total_c) h_c + added_c from zero, total_c = sum of a.

    Args:
        a: (m, c, g, h, t).
        added: (m, c, g, n, h, p).
        back: from the last chunk to the first.

    Returns:
        (m, c, g, n, h, p) in the dtype of `added`: at the entry of every chunk; with `back`, at its exit.
    """
    total, count = a.sum(-1), a.shape[1]
    if count > STEPS:
        return _many_states(total.flip(1), added.flip(1)).flip(1) if back else _many_states(total, added)
    states, decay = torch.empty_like(added), total.exp()[:, :, :, None, :, None]
    state = torch.zeros_like(added[:, 0], dtype=a.dtype)
    for c in reversed(range(count)) if back else range(count):
        states[:, c] = state
        state = torch.addcmul(added[:, c], decay[:, c], state)
    return states


def _many_states(total: Tensor, added: Tensor) -> Tensor:
    """See `_states`: by one product for every `SPAN` chunks."""
    carried, pieces = torch.zeros_like(added[:, :1], dtype=total.dtype), []
    for totals, news in zip(total.split(SPAN, 1), added.split(SPAN, 1), strict=True):
        sums = _sums_up_to(torch.nn.functional.pad(totals, (0, 0, 0, 0, 1, 0)).movedim(1, -1))
        decay = _between(sums, total.dtype).tril_()
        states = torch.einsum("mghij,mjgnhp->mignhp", decay, torch.cat([carried, news], 1))
        pieces.append(states[:, :-1].to(added.dtype))
        carried = states[:, -1:]
    return torch.cat(pieces, 1)


def _weights(chunks: Chunks, between: Tensor) -> Tensor:
    """C_t B_s exp(a_{s+1} + ... + a_t), zero above the diagonal (m, c, g, h, t, s)."""
    scores = torch.einsum("mcgtn,mcgsn->mcgts", chunks.C, chunks.B)
    return scaled(scores.unsqueeze(3), between, scores.dtype).tril_()


def forward(chunks: Chunks) -> Tensor:
    """Outputs (m, c, g, h, t, p) in u's dtype."""
    u, a, B, C = chunks
    decays = _decays(a)
    y = torch.einsum("mcghts,mcghsp->mcghtp", _weights(chunks, decays.between), u)
    leaving = scaled(_by_time(u), _by_time(decays.to_exit), u.dtype)
    entry = _states(a, torch.einsum("mcgsn,mcgshp->mcgnhp", B, leaving))
    return y.addcmul_(_by_time(torch.einsum("mcgtn,mcgnhp->mcgthp", C, entry)), decays.from_entry)


def backward(chunks: Chunks, dy: Tensor) -> ChunkGrads:
    """Gradients for that of y, dy (m, c, g, h, t, p) in u's dtype."""
    u, a, B, C = chunks
    decays = _decays(a)
    weights = _weights(chunks, decays.between)
    du = torch.einsum("mcghts,mcghtp->mcghsp", weights, dy)
    dweights = torch.einsum("mcghtp,mcghsp->mcghts", dy, u)
    paths = weights.mul_(dweights)
    arriving = paths.sum(-1, dtype=a.dtype) - paths.sum(-2, dtype=a.dtype)  # at each step less what leaves it
    dscores = scaled(dweights, decays.between, u.dtype).sum(3).tril_()
    dC, dB = torch.einsum("mcgts,mcgsn->mcgtn", dscores, B), torch.einsum("mcgts,mcgtn->mcgsn", dscores, C)

    leaving = scaled(_by_time(u), _by_time(decays.to_exit), u.dtype)
    entry = _states(a, torch.einsum("mcgsn,mcgshp->mcgnhp", B, leaving))
    dread = scaled(_by_time(dy), _by_time(decays.from_entry), u.dtype)
    dC += torch.einsum("mcgthp,mcgnhp->mcgtn", dread, entry)
    read = torch.einsum("mcgtn,mcgnhp->mcgthp", C, entry)
    arriving += _by_time((read * dread).sum(-1, dtype=a.dtype).unsqueeze(-1)).squeeze(-1)

    dexit = _states(a, torch.einsum("mcgtn,mcgthp->mcgnhp", C, dread), back=True)
    dB += torch.einsum("mcgshp,mcgnhp->mcgsn", leaving, dexit)
    dleaving = torch.einsum("mcgsn,mcgnhp->mcgshp", B, dexit)
    du.addcmul_(_by_time(dleaving), decays.to_exit)
    arriving -= _by_time((dleaving * leaving).sum(-1, dtype=a.dtype).unsqueeze(-1)).squeeze(-1)

    da = _sums_up_to(arriving.flip(-1)).flip(-1).to(a.dtype)
    # Across all of a chunk; what leaves the last one has no gradient.
    da[:, :-1] += (dexit[:, :-1] * entry[:, 1:]).sum((-1, -3), dtype=a.dtype).unsqueeze(-1)
    return ChunkGrads(du, da, dB, dC)
