"""Layers of many inputs and many outputs around filters of complex states, the form that S5 and LRU share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.layers.s4nd_kernel import AxisKernel
from ssmvision.layers.s4nd_states import StateFilter

__all__ = ["StateMixer"]


class StateMixer(nn.Module):
    """y = Re(C x) + D u, x = (k_1 x ... x k_d) * (B u): all features share P complex states, filtered along every axis.

    Args:
        width: features H.
        B: (P, H) complex, initial input matrix.
        C: (H, P) complex, initial output matrix.
        kernel: makes the kernels of an axis, a `StateKernel`.
        device, dtype: of the parameters.
        options: of `S4ND`: dim, bidirectional, symmetric_center, l_max, rate, precision, backend, lr, wd.

    Shape:
        (B, *grid, H) -> the same.
    """

    def __init__(
        self,
        width: int,
        B: Tensor,
        C: Tensor,
        kernel: Callable[..., AxisKernel],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype or torch.get_default_dtype()}
        self.B = nn.Parameter(torch.view_as_real(B.resolve_conj()).contiguous().to(**factory))
        self.C = nn.Parameter(torch.view_as_real(C.resolve_conj()).contiguous().to(**factory))
        self.D = nn.Parameter(torch.randn(width, **factory))
        self.states = StateFilter(B.shape[0], kernel, device=device, dtype=dtype, **options)

    def forward(self, u: Tensor) -> Tensor:
        """Mix a map; see the class."""
        # The projections read and write the layouts that they are asked for, without transposing copies.
        v = torch.matmul(self.B.movedim(-1, 0).flatten(0, 1), u.flatten(1, -2).transpose(1, 2))
        x = self.states(v.reshape(u.shape[0], 2, self.states.d_model, *u.shape[1:-1]))
        weight = torch.stack((self.C[..., 0], -self.C[..., 1]), 1).flatten(1)
        y = torch.matmul(x.flatten(3).flatten(1, 2).transpose(1, 2), weight.t()).view(u.shape)
        return y + self.D * u

    def no_weight_decay(self) -> set[str]:
        """Names of the states' parameters that weight decay leaves alone."""
        return {f"states.{name}" for name in self.states.no_weight_decay()}
