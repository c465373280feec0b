"""The diagonal kernels S4D and DSS as a module. Parameter names are the authors'.

Sources: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models" (arXiv 2206.11893);
Gupta et al., "Diagonal State Spaces are as Effective as Structured State Spaces" (arXiv 2203.14343); Nguyen et al.,
"S4ND" (arXiv 2210.06583) for rate and bandlimit.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.discretize import (
    Discretization,
    diagonal_kernel,
    diagonal_modes,
    in_band,
    inverse_positive,
    positive,
    tile,
)
from ssmvision.kernels.s4nd.init import InitialSystem, initial_system
from ssmvision.kernels.s4nd.linear_system import System, from_modes
from ssmvision.kernels.s4nd.pairs import Pair, from_last_axis, mul
from ssmvision.layers.s4nd_kernel import AxisKernel, Rate, initial_steps, stack

__all__ = ["S4DKernel"]


class S4DKernel(AxisKernel):
    """Diagonal kernel: K[l] = 2 Re sum_n C_n B_n (discretized step)_n e^{l dt A_n}; with disc="dss", that of DSS.

    Args:
        d_model, channels, l_max, lr, wd: see `AxisKernel`.
        d_state: states, one of each conjugate pair is stored; with `is_real`, real states.
        init: see `initial_system`.
        disc: "zoh", "bilinear" or "dss".
        rank: of the low-rank part (which S4 uses).
        n_ssm: how many (A, B) there are; feature h uses number h mod n_ssm. None for one a feature.
        dt_min, dt_max: range of the initial step sizes.
        dt_tie: one step size a feature, not one a state.
        dt_transform, real_transform, imag_transform: see `positive`; of step size and the parts of A.
        bandlimit: leave out modes above this fraction of the Nyquist frequency at rate 1; None for none.
        antialias: at a rate above 1, leave out the modes above the Nyquist frequency there.
        is_real: real modes.
        deterministic: fixed C (the first HiPPO coefficient) and evenly spread step sizes.
        device, dtype: of the parameters.
        init_args: further arguments of `initial_system`.

    Raises:
        ValueError: settings that do not fit together.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        l_max: int | None = None,
        *,
        init: str | tuple[str, ...] = "legs",
        disc: Discretization = "zoh",
        rank: int = 1,
        n_ssm: int | None = None,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        dt_tie: bool = True,
        dt_transform: str = "exp",
        real_transform: str = "exp",
        imag_transform: str = "none",
        bandlimit: float | None = None,
        antialias: bool = False,
        is_real: bool = False,
        deterministic: bool = False,
        lr: Rate = None,
        wd: Rate = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **init_args: Any,
    ) -> None:
        super().__init__(d_model, channels, l_max, lr, wd, device, dtype)
        if disc not in ("zoh", "bilinear", "dss"):
            raise ValueError(f"disc={disc!r}: choose from zoh, bilinear, dss")
        copies = d_model if n_ssm is None else n_ssm
        if copies < 1 or d_model % copies:
            raise ValueError(f"n_ssm={copies} must divide d_model={d_model}")
        self.disc: Discretization = disc
        self.transforms = (dt_transform, real_transform, imag_transform)
        self.bandlimit, self.antialias, self.is_real = bandlimit, antialias, is_real
        self.modes = d_state if is_real else d_state // 2
        with torch.device("cpu"):
            initial = initial_system(init, 2 * self.modes if is_real else d_state, rank, copies, **init_args)
            steps = initial_steps((d_model, 1 if dt_tie else self.modes), dt_min, dt_max, dt_transform, deterministic)
            random = torch.randn(channels, d_model, self.modes, dtype=torch.complex128)
            self._add_parameters(initial, steps, self._fixed_output(initial) if deterministic else random)

    def _add_parameters(self, initial: InitialSystem, steps: Tensor, C: Tensor) -> None:
        """Every parameter, complex ones with their parts along a last axis of 2."""
        _, real_transform, imag_transform = self.transforms
        C, B = torch.view_as_real(C), torch.view_as_real(initial.B).unsqueeze(0)
        self.add_parameter("inv_dt", steps, "dt")
        self.add_parameter("C", C[..., 0] if self.is_real else C, "C", decay=True)
        self.add_parameter("B", B[..., 0] if self.is_real else B, "B")
        self.add_parameter("A_real", inverse_positive(-initial.A.real, real_transform), "A")
        if not self.is_real:
            self.add_parameter("A_imag", inverse_positive(-initial.A.imag, imag_transform), "A")
        self._add_low_rank(initial)

    def _add_low_rank(self, initial: InitialSystem) -> None:
        """S4 keeps the low-rank part; here it is dropped."""

    def _fixed_output(self, initial: InitialSystem) -> Tensor:
        """C that reads the first coordinate of the real system."""
        row = initial.V[:, 0]
        return row.repeat(self.d_model // len(row), 1).expand(self.channels, -1, -1).clone()

    def signature(self, length: int, rate: float) -> Hashable:
        """The shapes and options; the length where coefficients depend on it."""
        shapes = tuple((name, tuple(p.shape), p.dtype) for name, p in self._tensors())
        limited = self._limit(rate) is not None
        return (*shapes, self.disc, self.transforms, limited, length if self.disc == "dss" else None)

    def _limit(self, rate: float) -> float | None:
        """The band limit at a rate, as a fraction of the Nyquist frequency at rate 1."""
        if not self.antialias or rate <= 1:
            return self.bandlimit
        return 1 / rate if self.bandlimit is None else min(self.bandlimit, 1 / rate)

    def _tensors(self) -> list[tuple[str, Tensor]]:
        names = ("inv_dt", "C", "B", "A_real") if self.is_real else ("inv_dt", "C", "B", "A_real", "A_imag")
        return [(name, getattr(self, name)) for name in names]

    @classmethod
    def _continuous(cls, kernels: Sequence[Any], rates: Sequence[float]) -> tuple[Tensor, Pair, Pair, Pair]:
        """Step dt (G, H, 1 or N), A and B (G, H, N), C (G, C, H, N) of a batch, band limit applied to C."""
        first = kernels[0]
        dt, A, stored_B, stored_C = cls._trained(kernels, rates)
        if first.is_real:
            B, C = Pair(stored_B, torch.zeros_like(stored_B)), Pair(stored_C, torch.zeros_like(stored_C))
        else:
            B, C = from_last_axis(stored_B), from_last_axis(stored_C)
        A, B = (Pair(tile(p.re, first.d_model), tile(p.im, first.d_model)) for p in (A, B))
        return dt, A, B, C

    @classmethod
    def _trained(cls, kernels: Sequence[Any], rates: Sequence[float]) -> tuple[Tensor, Pair, Tensor, Tensor]:
        """Step dt (G, H, 1 or N), A (G, S, N), B (G, S, N, 2) and C (G, C, H, N, 2) of a batch, C in its band.

        Real systems' B and C have no last axis.
        """
        first = kernels[0]
        named = {name: stack([getattr(k, name) for k in kernels]) for name, _ in first._tensors()}
        dt_transform, real_transform, imag_transform = first.transforms
        real = -positive(named["A_real"], real_transform)
        A = Pair(real, torch.zeros_like(real) if first.is_real else -positive(named["A_imag"], imag_transform))
        C = named["C"]
        dt = positive(named["inv_dt"], dt_transform)
        limits = [k._limit(rate) for k, rate in zip(kernels, rates, strict=True)]
        if limits[0] is not None:
            limit = limits[0] if len(set(limits)) == 1 else dt.new_tensor(limits).view(-1, 1, 1)
            kept = in_band(dt, tile(A.im, first.d_model), limit).unsqueeze(1)
            C = C * (kept if first.is_real else kept.unsqueeze(-1))
        if len(set(rates)) > 1:
            dt = torch.stack([step * rate for step, rate in zip(dt.unbind(0), rates, strict=True)])
        elif rates[0] != 1:
            dt = dt * rates[0]
        return dt, A, named["B"].squeeze(1), C

    @classmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """See `AxisKernel`."""
        dt, A, B, C = cls._continuous(kernels, rates)
        weight = mul(Pair(B.re.unsqueeze(1), B.im.unsqueeze(1)), C)
        return diagonal_kernel(dt, A, weight, length, kernels[0].disc)

    def system(self, length: int | None = None, rate: float = 1.0) -> System:
        """See `AxisKernel`."""
        dt, A, B, C = self._continuous([self], [rate])
        weight = mul(Pair(B.re.unsqueeze(1), B.im.unsqueeze(1)), C)
        mode, coefficient = diagonal_modes(dt, A, weight, self.disc, length)
        return from_modes(Pair(mode.re[0], mode.im[0]), Pair(coefficient.re[0], coefficient.im[0]))
