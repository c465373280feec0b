"""Initial state-space systems of S4, S4D and S4ND: HiPPO forms, their diagonal relatives, and mixtures of them.

Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893),
section 4, and the authors' code for the names and for B.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.hippo import nplr

__all__ = ["MIXTURES", "InitialSystem", "InputInit", "initial_system"]

InputInit = Literal["constant", "random", "alternating", "unit-cw", "unit-ccw"]
MIXTURES = {
    "hippo": ("legs", "fourier"),
    "diag": ("diag-inv", "diag-lin"),
    "all": ("legs", "fourier", "diag-inv", "diag-lin"),
}
DIAGONAL = ("lin", "inv", "inv2", "real", "quad", "rand", "legs")
LONG_NAMES = {"linear": "lin", "inverse": "inv", "inverse2": "inv2", "quadratic": "quad", "random": "rand"}


class InitialSystem(NamedTuple):
    """S systems with one of each conjugate pair of n states, complex128.

    Attributes:
        A: (S, n / 2) diagonal part, real and imaginary part not positive.
        P: (rank, S, n / 2) low-rank part: the full matrix is diag(A) - P P^*.
        B: (S, n / 2).
        V: (S, n, n / 2) basis, in which a real system is this one.
    """

    A: Tensor
    P: Tensor
    B: Tensor
    V: Tensor


def initial_system(
    init: str | tuple[str, ...] = "legs",
    n: int = 64,
    rank: int = 1,
    copies: int = 1,
    *,
    real_scale: float = 1.0,
    imag_scale: float = 1.0,
    real_random: bool = False,
    imag_random: bool = False,
    B_init: InputInit = "constant",
    B_scale: float = 1.0,
    P_scale: float = 1.0,
    normalize: bool = False,
) -> InitialSystem:
    """Systems to start training from; random parts come from torch's global generator.

    Args:
        init: a HiPPO measure with a normal-plus-low-rank form ("legs", "legt", "fourier", ...); "diag-X" or "dplr-X"
            with X one of lin, inv, inv2, real, quad, rand, legs, where dplr draws a random low-rank part and diag has
            none; or a mixture: "hippo", "diag", "all", or a tuple of names, in equal shares.
        n: states, even.
        rank: of the low-rank part.
        copies: S, a multiple of the number of mixed names.
        real_scale, imag_scale: factors on the parts of A.
        real_random, imag_random: draw the real part from U(0, 1), the imaginary from U(0, n / 2).
        B_init: of diag-X and dplr-X; "legs" has the B of HiPPO.
        B_scale, P_scale: factors on B and on the random P.
        normalize: scale B for unit variance of the output (of diag-X and dplr-X).

    Raises:
        ValueError: an unknown name, an odd n, or copies that the mixture does not divide.
    """
    names = MIXTURES.get(init, (init,)) if isinstance(init, str) else tuple(init)
    if n < 2 or n % 2:
        raise ValueError(f"d_state must be even and at least 2 (conjugate pairs), got {n}")
    if copies % len(names):
        raise ValueError(f"init={init!r} mixes {len(names)} systems, which must divide n_ssm={copies}")
    share = copies // len(names)
    options = _Options(real_scale, imag_scale, real_random, imag_random, B_init, B_scale, P_scale, normalize)
    parts = [_named_system(name, n, rank, share, options) for name in names]
    return InitialSystem(
        torch.cat([part.A for part in parts]),
        torch.cat([part.P for part in parts], 1),
        torch.cat([part.B for part in parts]),
        torch.cat([part.V for part in parts]),
    )


class _Options(NamedTuple):
    """What `initial_system` is told about diagonal forms."""

    real_scale: float
    imag_scale: float
    real_random: bool
    imag_random: bool
    B_init: InputInit
    B_scale: float
    P_scale: float
    normalize: bool


def _named_system(name: str, n: int, rank: int, share: int, options: _Options) -> InitialSystem:
    """`share` equal systems of one name."""
    kind, _, form = name.partition("-")
    if kind not in ("diag", "dplr") or not form:
        W, P, B, V = nplr(name, n, rank)
        return InitialSystem(W.repeat(share, 1), _copies(P, share), B.repeat(share, 1), V.repeat(share, 1, 1))
    form = LONG_NAMES.get(form, form)
    decay = _decay(form, n, share, options.real_random) * options.real_scale
    A = -decay - 1j * _frequency(form, n, share, options.imag_random) * options.imag_scale
    P, B = _low_rank_and_input(form, n, rank, share, options.B_init)
    B = B * options.B_scale
    if options.normalize:
        B = B / (2 * (B / A).abs().square().sum(-1, keepdim=True)).sqrt()
    P = P * (options.P_scale if kind == "dplr" or form == "legs" else 0.0)
    return InitialSystem(A, P, B, torch.eye(n, dtype=A.dtype)[:, : n // 2].repeat(share, 1, 1))


def _copies(P: Tensor, share: int) -> Tensor:
    return P.unsqueeze(1).repeat(1, share, 1)


def _decay(form: str, n: int, share: int, random: bool) -> Tensor:
    """Minus the real part of A, (share, n / 2)."""
    if form == "real":
        index = torch.arange(n // 2, dtype=torch.float64) + 1
        return torch.rand(share, n // 2, dtype=torch.float64) * (n // 2) if random else index.repeat(share, 1)
    if random:
        return torch.rand(share, n // 2, dtype=torch.float64)
    return torch.full((share, n // 2), 0.5, dtype=torch.float64)


def _frequency(form: str, n: int, share: int, random: bool) -> Tensor:
    """Minus the imaginary part of A, (share, n / 2)."""
    if form not in DIAGONAL:
        raise ValueError(f"init form {form!r} is unknown; choose from {', '.join(DIAGONAL)}")
    if form == "rand":
        return torch.exp(torch.randn(share, n // 2, dtype=torch.float64))
    index = torch.arange(n // 2, dtype=torch.float64).repeat(share, 1)
    if random:
        index = torch.rand(share, n // 2, dtype=torch.float64) * (n // 2)
    if form == "real":
        return torch.zeros_like(index)
    if form == "lin":
        return math.pi * index
    if form == "quad":
        return (1 + 2 * index) ** 2 / math.pi
    if form == "legs":
        return -nplr("legs", n).W.imag.repeat(share, 1)
    return n / math.pi * (n / (1 + (2 * index if form == "inv" else index)) - 1)


def _low_rank_and_input(form: str, n: int, rank: int, share: int, B_init: str) -> tuple[Tensor, Tensor]:
    """P (rank, share, n / 2) and B (share, n / 2)."""
    if form == "legs":
        # S4D-LegS: theory asks for half this B; published configurations use it whole.
        _, P, B, _ = nplr("legs", n, rank)
        return _copies(P, share), B.repeat(share, 1)
    P = torch.randn(rank, share, n // 2, dtype=torch.complex128)
    index = torch.arange(n // 2)
    turn = {"unit-cw": -1, "unit-ccw": 1}
    if B_init == "constant":
        row = torch.ones(n // 2, dtype=torch.complex128)
    elif B_init == "alternating":
        row = (1 - 2 * (index % 2)).to(torch.complex128)
    elif B_init in turn:
        angle = turn[B_init] * 2 * math.pi / n * index.double()
        row = torch.complex(torch.cos(angle), torch.sin(angle))
    elif B_init == "random":
        return P, torch.randn(share, n // 2, dtype=torch.complex128)
    else:
        raise ValueError(f"B_init={B_init!r}: choose from constant, random, alternating, unit-cw, unit-ccw")
    return P, row.repeat(share, 1)
