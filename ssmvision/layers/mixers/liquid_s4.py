"""Liquid-S4 along each axis: products of neighbouring inputs beside the input itself. Experimental.

Source: Hasani et al., "Liquid Structural State-Space Models" (arXiv 2209.12951), section 3.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.kernels.s4nd import long_conv_nd
from ssmvision.kernels.s4nd.discretize import diagonal_modes
from ssmvision.kernels.s4nd.modes_op import modes_taps
from ssmvision.kernels.s4nd.pairs import Pair, mul, scale
from ssmvision.kernels.s4nd.two_sided import AxisKernels
from ssmvision.layers.mixers.separable import long_conv_mixer
from ssmvision.layers.s4nd import S4ND, Rates
from ssmvision.layers.s4nd_diagonal import S4DKernel

__all__ = ["LiquidConvolution", "LiquidKernel", "liquid_s4_mixer"]


class LiquidKernel(S4DKernel):
    """K_p[l] = 2 Re sum_n C_n B_bar_n^p A_bar_n^l for the degrees p = 1 .. P; that of degree 1 is S4D's.

    Args:
        d_model: H.
        d_state: see `S4DKernel`.
        channels: P, or 2 P for both directions, which have a C of their own.
        l_max: see `AxisKernel`.
        degree: P.
        options: of `S4DKernel`.

    Shape:
        Kernels are (directions x P, H, L), the direction outermost.
    """

    def __init__(self, d_model: int, d_state: int, channels: int, l_max: int | None, *, degree: int, **options: Any):
        super().__init__(d_model, d_state, channels // degree, l_max, **options)
        self.degree = degree

    def signature(self, length: int, rate: float) -> Hashable:
        """The shapes and options."""
        return super().signature(length, rate), self.degree

    @classmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """See `AxisKernel`."""
        dt, A, B, C = cls._continuous(kernels, rates)
        rows = Pair(B.re.unsqueeze(1), B.im.unsqueeze(1))
        log_mode, doubled = diagonal_modes(dt, A, rows, kernels[0].disc)
        step = scale(doubled, 0.5)
        power, taps = scale(C, 2.0), []
        for _ in range(kernels[0].degree):
            power = mul(power, step)
            taps.append(modes_taps(log_mode, power, length))
        return torch.stack(taps, 2).flatten(1, 2)


class LiquidConvolution(S4ND):
    """y = D u + K_1 * u + sum over axes a and degrees p of K_{a,p} * (u o u shifted by 1 along a o ... by p - 1).

    These are the terms of the recurrence x_k = (A_bar + B_bar u_k) x_{k-1} + B_bar u_k whose inputs are neighbours.
    K_{a,p} is the outer product of the kernel of degree p along axis a and those of degree 1 along the others. A
    product takes neighbours from one side, so the layer is not equivariant to flips.

    Args:
        width: features H.
        degree: largest p, at least 2.
        options: of `S4ND` and `S4DKernel`.

    Shape:
        (B, *grid, H) -> the same.

    Raises:
        ValueError: a degree below 2.
    """

    def __init__(self, width: int, degree: int, **options: Any) -> None:
        if degree < 2:
            raise ValueError(f"degree must be at least 2, got {degree}; degree 1 is the mixer s4d")
        kernel = partial(LiquidKernel, degree=degree)
        super().__init__(width, channels=degree, kernel=kernel, skip=False, transposed=False, **options)
        factory = {name: options.get(name) for name in ("device", "dtype")}
        self.D = nn.Parameter(torch.randn(1, width, **factory))

    def forward(self, u: Tensor, rate: Rates | None = None, kernels: AxisKernels | None = None) -> Tensor:
        """Convolve a map; see the class, and `S4ND` for `rate` and `kernels`."""
        x = u.movedim(-1, 1)
        taps, centers = self.kernels(x.shape[2:], rate) if kernels is None else kernels
        maps, degrees = [x], [(0,) * len(taps)]
        for axis in range(len(taps)):
            product = shifted = x
            for degree in range(1, self.channels):
                shifted = _later(shifted, axis + 2)
                product = product * shifted
                maps.append(product)
                degrees.append(tuple(degree if a == axis else 0 for a in range(len(taps))))
        every = [torch.cat([t[:, d[a] : d[a] + 1] for d in degrees], 2) for a, t in enumerate(taps)]
        precision = self._precision(x)
        y = long_conv_nd(torch.cat(maps, 1), every, None, centers=centers, precision=precision, backend=self.backend)
        total: Tensor = y.unflatten(2, (len(maps), -1)).sum(2).squeeze(1).movedim(1, -1)
        return total if self.D is None else total + self.D * u


def _later(x: Tensor, axis: int) -> Tensor:
    """Every value one position further along an axis, a zero in front."""
    zero = torch.zeros_like(x.narrow(axis, 0, 1))
    return torch.cat((zero, x.narrow(axis, 0, x.shape[axis] - 1)), axis)


def liquid_s4_mixer(
    dim: int,
    spatial_dims: int,
    *,
    degree: int = 2,
    d_state: int = 64,
    init: str | tuple[str, ...] = "legs",
    n_ssm: int | None = 1,
    dt_min: float = 0.01,
    dt_max: float = 1.0,
    gate: str = "glu",
    gate_args: Mapping[str, Any] | None = None,
    **layer: Any,
) -> nn.Module:
    """K * u + sum_p K_p * (products of p neighbouring inputs), p = 2 .. degree, along every axis. Experimental.

    Args:
        dim: channels.
        spatial_dims: axes.
        degree: of the largest products, at least 2.
        d_state, init, n_ssm, dt_min, dt_max: see the mixer s4d.
        gate, gate_args: see `build_gate`.
        layer: see `separable.LAYER_OPTIONS` and `S4ND`.

    Returns:
        Module (B, *grid, dim) -> (B, *grid, dim).
    """
    kernel: dict[str, Any] = {"d_state": d_state, "init": init, "n_ssm": n_ssm, "dt_min": dt_min, "dt_max": dt_max}
    build = partial(LiquidConvolution, degree=degree, **kernel)
    return long_conv_mixer(dim, spatial_dims, build, gate, gate_args, layer, symmetric=True)
