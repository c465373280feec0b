"""A dense state matrix as a convolution kernel: the definition that the structured kernels are tested against.

Source: Gu et al., "Combining Recurrent, Convolutional, and Continuous-time Models with Linear State-Space Layers"
(arXiv 2110.13985).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.discretize import positive
from ssmvision.kernels.s4nd.init import initial_system
from ssmvision.kernels.s4nd.linear_system import System, bilinear, from_complex, impulse_response
from ssmvision.kernels.s4nd.pairs import from_last_axis
from ssmvision.layers.s4nd_kernel import AxisKernel, Rate, initial_steps

__all__ = ["DenseKernel"]


def _both(half: Tensor) -> Tensor:
    """(..., N / 2) with the conjugates after it."""
    return torch.cat((half, half.conj().resolve_conj()), -1)


class DenseKernel(AxisKernel):
    """A dense complex matrix A, the ancestor of S4 (LSSL), by repeated squaring: for tests and small states.

    Args: see `S4DKernel`; A starts as the full matrix of `init`.
    """

    A: Tensor
    B: Tensor
    C: Tensor
    inv_dt: Tensor

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        l_max: int | None = None,
        *,
        init: str | tuple[str, ...] = "legs",
        rank: int = 1,
        n_ssm: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_transform: str = "exp",
        lr: Rate = None,
        wd: Rate = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **init_args: Any,
    ) -> None:
        super().__init__(d_model, channels, l_max, lr, wd, device, dtype)
        self.dt_transform = dt_transform
        with torch.device("cpu"):
            A, P, B, _ = initial_system(init, d_state, rank, d_model if n_ssm is None else n_ssm, **init_args)
            half = torch.randn(channels, d_model, d_state // 2, dtype=torch.complex128)
            full = _both(P)
            matrix = torch.diag_embed(_both(A)) - torch.einsum("rsn,rsm->snm", full, full.conj())
            self.add_parameter("inv_dt", initial_steps((d_model, 1), dt_min, dt_max, dt_transform, False), "dt")
            self.add_parameter("A", torch.view_as_real(matrix), "A")
            self.add_parameter("B", torch.view_as_real(_both(B)), "A")
            self.add_parameter("C", torch.view_as_real(_both(half)), "C", decay=True)

    def signature(self, length: int, rate: float) -> Hashable:
        """Every kernel for itself: this form is for small systems."""
        return id(self), length, rate

    @classmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """See `AxisKernel`."""
        return impulse_response(kernels[0].system(length, rates[0]), length).unsqueeze(0)

    def system(self, length: int | None = None, rate: float = 1.0) -> System:
        """See `AxisKernel`."""
        copies = self.d_model // self.A.shape[0]
        A, B = self.A.repeat(copies, 1, 1, 1), self.B.repeat(copies, 1, 1)
        system = from_complex(from_last_axis(A), from_last_axis(B), from_last_axis(self.C))
        dt = positive(self.inv_dt, self.dt_transform) * rate
        A_bar, B_bar = bilinear(system.A, system.B, dt)
        return System(A_bar, B_bar, system.C)
