"""The diagonal plus low-rank kernel of S4 as a module. Parameter names are the authors'.

Source: Gu et al., "Efficiently Modeling Long Sequences with Structured State Spaces" (arXiv 2111.00396).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.discretize import positive, tile
from ssmvision.kernels.s4nd.dplr import dplr_kernel
from ssmvision.kernels.s4nd.dplr_op import dplr_taps
from ssmvision.kernels.s4nd.init import InitialSystem
from ssmvision.kernels.s4nd.linear_system import System, bilinear, dplr_matrix, truncate_output
from ssmvision.kernels.s4nd.pairs import Pair, from_last_axis
from ssmvision.layers.s4nd_diagonal import S4DKernel
from ssmvision.layers.s4nd_kernel import stack

__all__ = ["S4Kernel"]

FIT_FIRST = "S4's kernels are fitted to the first input's size: run the network once before it is compiled or exported"


class S4Kernel(S4DKernel):
    """Kernel of S4: A = diag(A) - P P^*, discretized by the bilinear rule.

    The trained C is C (I - dA^l) for a kernel length l: that of `l_max` from the start, else of the first call; a
    longer kernel doubles l, which leaves the kernel's taps as they are. The buffer `l_kernel` says which l the C of a
    state dict belongs to (0: plain C). At a rate other than 1 the C of rate 1 is used at length l / rate, as the
    authors do: an approximation.

    Args: see `S4DKernel`, without `disc`, `is_real`.
    """

    l_kernel: Tensor
    C: Tensor
    P: Tensor

    def __init__(
        self, d_model: int, d_state: int = 64, channels: int = 1, l_max: int | None = None, **kernel_args: Any
    ):
        if "disc" in kernel_args or "is_real" in kernel_args:
            raise ValueError(
                "S4 has complex modes and the bilinear rule only; use the kernel 's4d' for disc or is_real"
            )
        super().__init__(d_model, d_state, channels, l_max, disc="bilinear", **kernel_args)
        self.length = 0
        self.register_buffer("l_kernel", torch.zeros((), dtype=torch.int64, device=self._device))
        self.set_l_max(l_max)

    def set_l_max(self, l_max: int | None) -> None:
        """Change the longest kernel, and fit C to it if it is longer than before."""
        super().set_l_max(l_max)
        if l_max is not None and l_max > self.length and not self.C.is_meta:
            self._fit(l_max)

    def _add_low_rank(self, initial: InitialSystem) -> None:
        self.add_parameter("P", torch.view_as_real(initial.P), "A")

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if not self.l_kernel.is_meta:
            self.length = int(self.l_kernel)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        return [*super()._tensors(), ("P", self.P)]

    # The lengths of a network's inputs change its parametrization, not its graph.
    @torch.compiler.disable(reason=FIT_FIRST)  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _fit(self, length: int) -> None:
        """Multiply C by I - dA^length; or, where that was done for a shorter kernel, double it until it suffices."""
        matrix, C = self._discrete()
        while self.length == 0 or self.length < length:
            if self.length == 0:
                C, self.length = truncate_output(matrix, C, length), length
            else:
                C, self.length = truncate_output(matrix, C, self.length, 1.0), 2 * self.length
        re, im = C.chunk(2, -1)
        self.C.copy_(torch.stack((re / 2, -im / 2), -1))
        self.l_kernel.fill_(self.length)

    def _discrete(self, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """Discrete matrix (H, 2N, 2N) and the stored output row (C, H, 2N) on real states, in float64."""
        named = {name: t.detach().double() for name, t in self._tensors()}
        dt, matrix = self._matrix(named, rate)
        C = from_last_axis(named["C"])
        discrete, _ = bilinear(matrix, torch.zeros_like(matrix[..., 0]), dt)
        return discrete, 2 * torch.cat((C.re, -C.im), -1)

    def _matrix(self, named: dict[str, Tensor], rate: float) -> tuple[Tensor, Tensor]:
        """Step dt (H, 1) and the continuous matrix (H, 2N, 2N)."""
        dt = positive(named["inv_dt"], self.transforms[0]) * rate
        if dt.shape[-1] != 1:
            raise ValueError("S4's recurrence needs one step size a feature; use dt_tie=True")
        A = Pair(-positive(named["A_real"], self.transforms[1]), -positive(named["A_imag"], self.transforms[2]))
        P = from_last_axis(named["P"])
        A, P = (Pair(tile(p.re, self.d_model), tile(p.im, self.d_model)) for p in (A, P))
        return dt, dplr_matrix(A, P)

    def _prepare(self, length: int, rate: float) -> int:
        """Roots of unity for this length and rate, after C was fitted to it."""
        wanted = round(rate * length)
        if self.length == 0 and self.l_max is not None:
            self._fit(self.l_max)
        if wanted > self.length:
            self._fit(wanted)
        return max(round(self.length / rate), length)

    def signature(self, length: int, rate: float) -> Hashable:
        """As of S4D, and the number of roots of unity."""
        return (super().signature(length, rate), self._prepare(length, rate))

    @classmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """See `AxisKernel`."""
        nodes = kernels[0]._prepare(length, rates[0])
        stored = stack([k.P for k in kernels])
        if stored.shape[1] == 1:
            dt, A, B, C = cls._trained(kernels, rates)
            return dplr_taps(dt, A.re, A.im, B, C, stored.squeeze(1), nodes, length)
        P = from_last_axis(stored)
        P = Pair(tile(P.re, kernels[0].d_model), tile(P.im, kernels[0].d_model))
        return dplr_kernel(*cls._continuous(kernels, rates), P, nodes, length)

    def system(self, length: int | None = None, rate: float = 1.0) -> System:
        """See `AxisKernel`; in float64, since C is recovered by a solve."""
        named = {name: t.detach().double() for name, t in self._tensors()}
        dt, matrix = self._matrix(named, rate)
        B = from_last_axis(named["B"][0])
        A, B_bar = bilinear(matrix, torch.cat([tile(part, self.d_model) for part in B], -1), dt)
        C = self._discrete()[1]
        if self.length:
            base = A if rate == 1 else self._discrete()[0]
            eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
            closed = eye - torch.linalg.matrix_power(base, self.length)
            C = torch.linalg.solve(closed, C.transpose(0, 1), left=False).transpose(0, 1)
        return System(A, B_bar, C)
