"""Discrete linear systems x_l = A x_{l-1} + B u_l, y_l = C x_l in real arithmetic, whatever parametrization they had.

The slow and general form of every kernel here: the recurrence for streaming, and the definition that the fast
kernels are tested against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.pairs import Pair

__all__ = ["System", "bilinear", "dplr_matrix", "from_complex", "from_modes", "impulse_response", "truncate_output"]


class System(NamedTuple):
    """A (H, S, S), B (H, S) and C (C, H, S), real: one single-input system with C outputs for each of H channels."""

    A: Tensor
    B: Tensor
    C: Tensor


def _stack_rotations(re: Tensor, im: Tensor) -> Tensor:
    """Complex matrices (..., N, M) as real ones (..., 2N, 2M) on stacked real and imaginary parts."""
    return torch.cat((torch.cat((re, -im), -1), torch.cat((im, re), -1)), -2)


def from_complex(A: Pair, B: Pair, C: Pair) -> System:
    """The real form of y = Re(C x) of a complex system, A (H, N, N), B (H, N), C (C, H, N): 2N real states."""
    return System(_stack_rotations(*A), torch.cat(B, -1), torch.cat((C.re, -C.im), -1))


def from_modes(log_mode: Pair, coefficient: Pair) -> System:
    """The system whose impulse response is Re sum_n coefficient_n e^{l log_mode_n}; shapes of `diagonal_modes`."""
    size = torch.exp(log_mode.re)
    re, im = size * torch.cos(log_mode.im), size * torch.sin(log_mode.im)
    ones = torch.ones_like(re)
    A = Pair(torch.diag_embed(re), torch.diag_embed(im))
    return from_complex(A, Pair(ones, torch.zeros_like(ones)), coefficient)


def dplr_matrix(A: Pair, P: Pair) -> Tensor:
    """diag(A) - P P^* on states that come in conjugate pairs, as a real matrix on one of each pair.

    Args:
        A: (H, N) diagonal.
        P: (R, H, N).

    Returns:
        (H, 2N, 2N), on stacked real and imaginary parts.
    """
    diagonal = _stack_rotations(torch.diag_embed(A.re), torch.diag_embed(A.im))
    stacked = torch.cat(P, -1)
    # P^* x plus its conjugate is twice the real part: a real functional.
    return diagonal - 2 * torch.einsum("rhn,rhm->hnm", stacked, stacked)


def bilinear(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Tustin's discretization of x' = A x + B u.

    Args:
        A: (H, S, S).
        B: (H, S).
        dt: (H, 1).

    Returns:
        (I - dt/2 A)^-1 (I + dt/2 A) and dt (I - dt/2 A)^-1 B.
    """
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    half = dt.unsqueeze(-1) / 2 * A
    solved: Tensor = torch.linalg.solve(eye - half, torch.cat((eye + half, (dt * B).unsqueeze(-1)), -1))
    return solved[..., :-1], solved[..., -1]


def impulse_response(system: System, length: int) -> Tensor:
    """C A^l B for l = 0 .. length - 1: (C, H, length). Doubles the known powers, so log2(length) products."""
    columns, power = system.B.unsqueeze(-1), system.A
    while columns.shape[-1] < length:
        columns = torch.cat((columns, power @ columns), -1)
        power = power @ power
    return torch.einsum("chs,hsl->chl", system.C, columns[..., :length])


def truncate_output(A: Tensor, C: Tensor, length: int, sign: float = -1.0) -> Tensor:
    """C (I + sign A^length), (C, H, S): for -1 the output matrix whose infinite response is the finite kernel's."""
    return C + sign * torch.einsum("chs,hst->cht", C, torch.linalg.matrix_power(A, length))
