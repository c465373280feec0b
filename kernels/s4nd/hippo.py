"""HiPPO matrices and their normal-plus-low-rank form, in float64.

Sources: Gu et al., "HiPPO: Recurrent Memory with Optimal Polynomial Projections" (arXiv 2008.07669), appendix D; Gu et
al., "Efficiently Modeling Long Sequences with Structured State Spaces" (arXiv 2111.00396), theorem 1 and appendix C;
Gu et al., "How to Train Your HiPPO" (arXiv 2206.12037) for the Fourier measures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["NPLR", "hippo_matrices", "low_rank_correction", "measures", "nplr"]

ALIASES = {"fout": "fourier", "foud": "fourier_diag"}
# Eigenvalues closer to zero than this are the zero-frequency pair of a Fourier measure.
ZERO_FREQUENCY = 1e-4
System = tuple[Tensor, Tensor]


def _orders(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64)


def _legs(n: int) -> System:
    b = torch.sqrt(2 * _orders(n) + 1)
    return -(torch.tril(torch.outer(b, b), -1) + torch.diag(_orders(n) + 1)), b


def _legsd(n: int) -> System:
    A, b = _legs(n)
    return A + torch.outer(b, b) / 2, b / 2


def _legt(n: int) -> System:
    i, j = _orders(n)[:, None], _orders(n)[None, :]
    r = torch.sqrt(2 * _orders(n) + 1)
    sign = torch.where(i < j, (-1.0) ** (j - i), torch.ones(()).double())
    return -torch.outer(r, r) * sign / 2, r / 2


def _lmu(n: int) -> System:
    i, j = _orders(n)[:, None], _orders(n)[None, :]
    r = (2 * _orders(n) + 1)[:, None]
    alternating = (-1.0) ** (i - j + 1).abs()
    return torch.where(i < j, -torch.ones(()).double(), alternating) * r, (-1.0) ** _orders(n) * r[:, 0]


def _lagt(n: int, beta: float = 1.0) -> System:
    ones = torch.ones(n, n, dtype=torch.float64)
    return torch.eye(n, dtype=torch.float64) / 2 - torch.tril(ones), beta * ones[0]


def _glagt(n: int, alpha: float = 0.0, beta: float = 0.01) -> System:
    order = _orders(n)
    ones = torch.ones(n, n, dtype=torch.float64)
    A = -torch.eye(n, dtype=torch.float64) * (1 + beta) / 2 - torch.tril(ones, -1)
    # log of the norm of the generalized Laguerre polynomials, squared: gamma(n + alpha + 1) / n!
    log_norm = (torch.lgamma(order + alpha + 1) - torch.lgamma(order + 1)) / 2
    binomial = torch.exp(2 * log_norm - math.lgamma(alpha + 1))
    norm = torch.exp(log_norm)
    tilt = math.exp(-math.lgamma(1 - alpha) / 2) * beta ** ((1 - alpha) / 2)
    return A * norm[None, :] / norm[:, None], binomial / norm * tilt


def _fourier_basis(n: int) -> Tensor:
    """Values of the cosines at the end of the window: sqrt(2), the constant 1; 0 for the sines."""
    b = torch.zeros(n, dtype=torch.float64)
    b[0::2] = math.sqrt(2)
    b[0] = 1
    return b


def _rotation(n: int) -> Tensor:
    """Skew matrix that turns rows 2m and 2m + 1 (cosine and sine) into each other with frequency m."""
    d = torch.zeros(n - 1, dtype=torch.float64)
    d[0::2] = _orders(n // 2)
    return torch.diag(d, -1) - torch.diag(d, 1)


def _fourier(n: int) -> System:
    b = _fourier_basis(n)
    return math.pi * _rotation(n) - torch.outer(b, b), b


def _fourier_decay(n: int) -> System:
    b = _fourier_basis(n)
    return math.pi * _rotation(n) - torch.outer(b, b) / 2, b / 2


def _fourier_diag(n: int) -> System:
    return 2 * math.pi * _rotation(n) - torch.eye(n, dtype=torch.float64) / 2, _fourier_basis(n)


MATRICES: dict[str, Callable[..., System]] = {
    "legs": _legs,
    "legsd": _legsd,
    "legt": _legt,
    "lmu": _lmu,
    "lagt": _lagt,
    "glagt": _glagt,
    "fourier": _fourier,
    "fourier_decay": _fourier_decay,
    "fourier_diag": _fourier_diag,
}


def measures() -> tuple[str, ...]:
    """Names that `hippo_matrices` takes."""
    return (*MATRICES, *ALIASES)


def hippo_matrices(measure: str, n: int, **options: float) -> System:
    """State matrix A (n, n) and input matrix B (n,) of x' = A x + B u for a measure, in float64.

    Args:
        measure: "legs" (scaled Legendre), "legt" and "lmu" (translated Legendre, two normalizations), "lagt" and
            "glagt" (Laguerre), "legsd" (LegS made normal), "fourier", "fourier_decay", "fourier_diag".
        n: order; even for the Fourier measures.
        options: `beta` of "lagt"; `alpha` and `beta` of "glagt".

    Raises:
        ValueError: no such measure, or an odd order for a Fourier measure.
    """
    name = ALIASES.get(measure, measure)
    if name not in MATRICES:
        raise ValueError(f"measure={measure!r} is unknown; choose from {', '.join(measures())}")
    if n < 1 or (name.startswith("fourier") and n % 2):
        raise ValueError(f"{measure} needs a positive order, even for Fourier measures, got {n}")
    return MATRICES[name](n, **options)


def low_rank_correction(measure: str, n: int, rank: int = 1) -> Tensor:
    """P (rank, n) such that A + P^T P is normal; rows beyond the rank that the measure needs are zero. float64.

    Raises:
        ValueError: the measure has no such form, or needs a higher rank ("legt" needs 2).
    """
    name = ALIASES.get(measure, measure)
    order = _orders(n)
    if name == "legs":
        rows = [torch.sqrt(order + 0.5)]
    elif name == "legt":
        even = (order % 2 == 0).double()
        rows = [torch.sqrt(order + 0.5) * (1 - even), torch.sqrt(order + 0.5) * even]
    elif name == "lagt":
        rows = [torch.full((n,), math.sqrt(0.5), dtype=torch.float64)]
    elif name in ("fourier", "fourier_decay"):
        rows = [_fourier_basis(n) * (1 if name == "fourier" else math.sqrt(0.5))]
    elif name in ("fourier_diag", "legsd"):
        rows = [torch.zeros(n, dtype=torch.float64)]
    else:
        raise ValueError(f"measure={measure!r} has no normal-plus-low-rank form")
    if rank < len(rows):
        raise ValueError(f"measure={measure!r} needs rank {len(rows)}, got rank={rank}")
    return torch.stack(rows + [torch.zeros(n, dtype=torch.float64)] * (rank - len(rows)))


class NPLR(NamedTuple):
    """A HiPPO system in the basis V of the normal part; one of each conjugate pair of states.

    Attributes:
        W: (n / 2,) eigenvalues of A + P P^T, by increasing imaginary part, none of them positive.
        P: (rank, n / 2) low-rank correction in that basis: A = V (diag(W) - P P^*) V^*.
        B: (n / 2,) input matrix in that basis.
        V: (n, n / 2) eigenvectors, complex128 like the rest. Each is defined up to a unit phase.
    """

    W: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


def nplr(measure: str, n: int, rank: int = 1, b_clip: float | None = 2.0) -> NPLR:
    """Normal-plus-low-rank form of a HiPPO system.

    Args:
        measure: one of those that `low_rank_correction` takes.
        n: even order.
        rank: rows of P.
        b_clip: bound on the imaginary part of B; None for none.

    Raises:
        ValueError: see `low_rank_correction`; an odd order; more than one pair of eigenvalues at frequency zero.
    """
    if n % 2:
        raise ValueError(f"conjugate pairs need an even order, got {n}")
    A, b = hippo_matrices(measure, n)
    P = low_rank_correction(measure, n, rank)
    normal = A + P.T @ P
    # A multiple of the identity plus a skew matrix: the imaginary parts come from a Hermitian problem.
    decay = normal.diagonal().mean()
    frequencies, vectors = torch.linalg.eigh(-1j * (normal - decay * torch.eye(n, dtype=torch.float64)))
    W, V = decay + 1j * frequencies[: n // 2], vectors[:, : n // 2].clone()
    if n > 2 and frequencies[n // 2 - 2].abs() < ZERO_FREQUENCY:
        raise ValueError(f"measure={measure!r} has more than one pair of states without frequency")
    if frequencies[n // 2 - 1].abs() < ZERO_FREQUENCY:
        # The solver returns any two vectors of that eigenspace; a conjugate pair is needed. In the Fourier measures,
        # the only ones with this pair, rows 0 and 1 span the space.
        V[:, -1] = 0
        V[0, -1], V[1, -1] = math.sqrt(0.5), 1j * math.sqrt(0.5)
    B = V.conj().T @ b.to(V.dtype)
    if b_clip is not None:
        B = torch.complex(B.real, B.imag.clamp(-b_clip, b_clip))
    return NPLR(W, P.to(V.dtype) @ V.conj(), B, V)
