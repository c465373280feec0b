"""From a continuous diagonal system to the sum of exponentials that its sampled kernel is.

Sources: Gu et al., arXiv 2206.11893 (S4D), sections 3.1-3.3; Gupta et al., "Diagonal State Spaces are as Effective as
Structured State Spaces" (arXiv 2203.14343), proposition 1 (DSS).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.modes_op import modes_taps
from ssmvision.kernels.s4nd.pairs import Pair, conj, div, exp, expm1, mul, scale

__all__ = ["Discretization", "diagonal_kernel", "diagonal_modes", "in_band", "inverse_positive", "positive", "tile"]

Discretization = Literal["zoh", "bilinear", "dss"]
# Parameters that must be positive start no nearer to zero, where the logarithm ends.
FLOOR = 1e-4
DSS_EPS = 1e-7


def positive(parameter: Tensor, transform: str) -> Tensor:
    """The positive value behind a trained parameter.

    Args:
        parameter: any shape.
        transform: "none", "exp", "relu" (plus 1e-4), "sigmoid" or "softplus".

    Raises:
        ValueError: no such transform.
    """
    if transform == "none":
        return parameter
    if transform == "exp":
        return torch.exp(parameter)
    if transform == "relu":
        return torch.relu(parameter) + FLOOR
    if transform == "sigmoid":
        return torch.sigmoid(parameter)
    if transform == "softplus":
        return torch.nn.functional.softplus(parameter)
    raise ValueError(f"transform={transform!r}: choose from none, exp, relu, sigmoid, softplus")


def inverse_positive(value: Tensor, transform: str) -> Tensor:
    """The parameter whose `positive` value this is; values below 1e-4 are raised to it ("relu" adds that once more)."""
    value = value.clamp(min=FLOOR)
    if transform in ("none", "relu"):
        return value
    if transform == "exp":
        return torch.log(value)
    if transform == "sigmoid":
        return torch.logit(value)
    if transform == "softplus":
        return value + torch.log(-torch.expm1(-value))
    raise ValueError(f"transform={transform!r}: choose from none, exp, relu, sigmoid, softplus")


def tile(t: Tensor, channels: int) -> Tensor:
    """(..., S, N) -> (..., channels, N), channel h taking row h mod S."""
    copies = channels // t.shape[-2]
    return t if copies == 1 else t.repeat(*(1,) * (t.dim() - 2), copies, 1)


def in_band(dt: Tensor, A_imag: Tensor, bandlimit: float | Tensor) -> Tensor:
    """1 where a mode stays below `bandlimit` of the Nyquist frequency, else 0.

    Args:
        dt: (..., H, 1 or N) step at rate 1.
        A_imag: (..., H, N) in radians.
        bandlimit: fraction of the Nyquist frequency at rate 1; a tensor broadcasts to A_imag.

    Source: Nguyen et al., "S4ND" (arXiv 2210.06583), section 3.2, equation for the bandlimited kernel.
    """
    return (dt * A_imag.abs() / (2 * math.pi) < bandlimit / 2).to(A_imag.dtype)


def diagonal_modes(
    dt: Tensor, A: Pair, weight: Pair, disc: Discretization, length: int | None = None
) -> tuple[Pair, Pair]:
    """Log of the mode per step and its coefficient: the kernel is the real part of sum_n coefficient e^{l log_mode}.

    Args:
        dt: (..., H, 1 or N).
        A: (..., H, N) continuous modes.
        weight: (..., C, H, N), the product of B and C.
        disc: "zoh", "bilinear" or "dss".
        length: of the kernel; only "dss" needs it, whose coefficients depend on it.

    Returns:
        log_mode (..., H, N) and coefficient (..., C, H, N). The factor 2 for the conjugate half is in the
        coefficient (except for "dss", which is defined without it).

    Raises:
        ValueError: no such discretization, or "dss" without a length.
    """
    z = scale(A, dt)
    if disc == "zoh":
        step = div(expm1(z), A)
    elif disc == "bilinear":
        one = torch.ones_like(z.re)
        below, above = Pair(1 - z.re / 2, -z.im / 2), Pair(1 + z.re / 2, z.im / 2)
        step = scale(div(Pair(one, torch.zeros_like(one)), below), dt)
        mode = div(above, below)
        z = Pair(torch.log(mode.re * mode.re + mode.im * mode.im) / 2, torch.atan2(mode.im, mode.re))
    elif disc == "dss":
        if length is None:
            raise ValueError("disc='dss' needs the kernel's length: its coefficients depend on it")
        return z, mul(weight, _over_channels(_dss_step(z, A, length)))
    else:
        raise ValueError(f"disc={disc!r}: choose from zoh, bilinear, dss")
    return z, scale(mul(weight, _over_channels(step)), 2.0)


def _over_channels(a: Pair) -> Pair:
    return Pair(a.re.unsqueeze(-3), a.im.unsqueeze(-3))


def _dss_step(z: Pair, A: Pair, length: int) -> Pair:
    """(e^z - 1) / (A (e^{zL} - 1)); growing modes are normalized at the end of the window instead."""
    grows = A.re > 0
    sign = 1 - 2 * grows.to(z.re.dtype)
    towards = scale(z, sign)
    x = mul(expm1(scale(towards, float(length))), A)
    inverse = scale(conj(x), (x.re * x.re + x.im * x.im + DSS_EPS).reciprocal())
    step = mul(expm1(towards), inverse)
    last = scale(z, grows.to(z.re.dtype) * (length - 1)) if length else z
    return mul(step, exp(Pair(-last.re.detach(), -last.im.detach())))


def diagonal_kernel(dt: Tensor, A: Pair, weight: Pair, length: int, disc: Discretization = "zoh") -> Tensor:
    """Convolution kernel of diagonal systems: K[l] = Re sum_n coefficient_n e^{l log_mode_n}.

    Args:
        dt, A, weight, disc: see `diagonal_modes`; leading axes (one for each kernel generated at once) are free.
        length: L.

    Returns:
        (..., C, H, L) in A's dtype.
    """
    mode, coefficient = diagonal_modes(dt, A, weight, disc, length)
    return modes_taps(mode, coefficient, length)
