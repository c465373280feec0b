"""The convolution kernel of S4: a diagonal plus low-rank system, by its truncated generating function.

Source: Gu et al., arXiv 2111.00396 (S4), section 3.2 and appendix C.3, algorithm 1. Evaluated at e^{-i theta} with
everything multiplied by cos(theta / 2), so that the Nyquist node, where the bilinear variable is infinite, is an
ordinary point; in real arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.pairs import Pair, add, conj, div, mul, scale

__all__ = ["dplr_kernel"]


def dplr_kernel(dt: Tensor, A: Pair, B: Pair, C: Pair, P: Pair, nodes: int, length: int) -> Tensor:
    """Kernel of x' = (diag(A) - P P^*) x + B u, discretized by the bilinear rule.

    Args:
        dt: (..., H, 1 or N).
        A, B: (..., H, N), one of each conjugate pair.
        C: (..., C, H, N), multiplied by I - A^nodes already.
        P: (..., R, H, N).
        nodes: number of roots of unity, at least `length`.
        length: L.

    Returns:
        (..., C, H, L) in A's dtype.
    """
    rank = P.re.shape[-3]
    left = _concat(Pair(B.re.unsqueeze(-3), B.im.unsqueeze(-3)), P)
    right = _concat(C, conj(P))
    half_angle = torch.arange(nodes // 2 + 1, device=dt.device, dtype=torch.float64) * (math.pi / nodes)
    c, s = torch.cos(half_angle).to(dt.dtype), torch.sin(half_angle).to(dt.dtype)
    values = _resolvent(scale(left, dt.unsqueeze(-3)), right, scale(A, dt), c, s)
    spectrum = _woodbury(values, rank, c)
    return _samples(spectrum, nodes, length)


def _concat(a: Pair, b: Pair) -> Pair:
    return Pair(torch.cat((a.re, b.re), -3), torch.cat((a.im, b.im), -3))


def _resolvent(left: Pair, right: Pair, A: Pair, c: Tensor, s: Tensor) -> Pair:
    """Sum over conjugate pairs of left_i right_j / (2 i s - c A), (..., H, I, J, nodes / 2 + 1)."""
    # With f the fraction for A and g that for its conjugate: v f + conj(v) g = Re(v) (f + g) + i Im(v) (f - g).
    real = -c * A.re.unsqueeze(-1)
    above, below = 2 * s - c * A.im.unsqueeze(-1), 2 * s + c * A.im.unsqueeze(-1)
    f_size, g_size = (real * real + above * above).reciprocal(), (real * real + below * below).reciprocal()
    f, g = Pair(real * f_size, -above * f_size), Pair(real * g_size, -below * g_size)
    fractions = torch.cat(
        (
            torch.cat((f.re + g.re, g.im - f.im), -2),
            torch.cat((f.im + g.im, f.re - g.re), -2),
        ),
        -1,
    )
    v = mul(
        Pair(left.re.unsqueeze(-3), left.im.unsqueeze(-3)),
        Pair(right.re.unsqueeze(-4), right.im.unsqueeze(-4)),
    )
    rows = torch.cat(v, -1).movedim(-2, -4)
    shape = rows.shape[-3:-1]
    out = torch.matmul(rows.flatten(-3, -2), fractions).unflatten(-2, tuple(shape))
    re, im = out.chunk(2, -1)
    return Pair(re, im)


def _woodbury(values: Pair, rank: int, c: Tensor) -> Pair:
    """The low-rank correction: q00 - c q01 (I + c q11)^-1 q10, (..., H, C, nodes / 2 + 1)."""

    def part(rows: slice, columns: slice) -> Pair:
        return Pair(values.re[..., rows, columns, :], values.im[..., rows, columns, :])

    plain, low = slice(None, -rank), slice(-rank, None)
    q00, q01, q10, q11 = part(plain, plain), part(plain, low), part(low, plain), part(low, low)
    if rank == 1:
        inverse = div(Pair(c, torch.zeros_like(c)), Pair(1 + c * q11.re, c * q11.im))
        correction = mul(mul(q01, q10), inverse)
    else:
        correction = _solve(q01, q10, q11, c)
    total = add(q00, scale(correction, -1.0))
    return Pair(total.re.squeeze(-3), total.im.squeeze(-3))


def _solve(q01: Pair, q10: Pair, q11: Pair, c: Tensor) -> Pair:
    """The product c q01 (I + c q11)^-1 q10 for any rank, as a real system of twice the size."""

    def last(a: Pair) -> Pair:
        return Pair(a.re.movedim(-1, -3), a.im.movedim(-1, -3))

    q01, q10, q11 = last(q01), last(q10), last(q11)
    factor = c[:, None, None]
    matrix = torch.cat((torch.cat((q11.re, -q11.im), -1), torch.cat((q11.im, q11.re), -1)), -2) * factor
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    re, im = (torch.linalg.solve(eye + matrix, torch.cat(q10, -2)) * factor).chunk(2, -2)
    product = Pair(q01.re @ re - q01.im @ im, q01.re @ im + q01.im @ re)
    return Pair(product.re.movedim(-3, -1), product.im.movedim(-3, -1))


def _samples(spectrum: Pair, nodes: int, length: int) -> Tensor:
    """Inverse transform to (..., C, H, length), with the half-sample shift e^{i theta / 2} of the bilinear rule."""
    device, dtype = spectrum.re.device, spectrum.re.dtype
    frequency = torch.arange(nodes // 2 + 1, device=device)
    # Reduced as integers: the angle stays exact however long the kernel is.
    turns = frequency[:, None] * (2 * torch.arange(length, device=device) + 1) % (2 * nodes)
    angle = turns.double() * (math.pi / nodes)
    weight = torch.where((frequency == 0) | (2 * frequency == nodes), 1.0 / nodes, 2.0 / nodes).double()[:, None]
    matrix = torch.cat((weight * torch.cos(angle), -weight * torch.sin(angle))).to(dtype)
    kernel: Tensor = torch.matmul(torch.cat(spectrum, -1), matrix)
    return kernel.transpose(-3, -2)
