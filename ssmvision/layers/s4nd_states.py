"""Filters of complex states along the axes of a map: what S5 and LRU put between two dense maps of the features.

Sources: Smith et al., "Simplified State Space Layers for Sequence Modeling" (arXiv 2208.04933) for S5's states; Orvieto
et al., "Resurrecting Recurrent Neural Networks for Long Sequences" (arXiv 2303.06349) for those of LRU; Nguyen et al.,
"S4ND" (arXiv 2210.06583) for the outer product over axes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.s4nd import long_conv_nd
from ssmvision.kernels.s4nd.discretize import diagonal_modes, in_band, positive
from ssmvision.kernels.s4nd.linear_system import System
from ssmvision.kernels.s4nd.modes_op import modes_taps
from ssmvision.kernels.s4nd.pairs import Pair, from_last_axis, mul, scale
from ssmvision.kernels.s4nd.two_sided import AxisKernels
from ssmvision.layers.s4nd import S4ND, Rates
from ssmvision.layers.s4nd_kernel import AxisKernel, Rate, initial_steps, stack

__all__ = ["LRUStates", "S5States", "StateFilter", "StateKernel"]


class StateKernel(AxisKernel):
    """The impulse responses g_p lambda_p^l of P complex states, real parts first, then the imaginary parts.

    With four channels, so for two directions, those of the second are w_p g_p lambda_p^l with trained complex w_p:
    where a bidirectional 1D layer has an output matrix C a direction, the second here is C diag(w).

    Args:
        d_model: P.
        channels: 2, or 4 for both directions.
        l_max, lr, wd, device, dtype: see `AxisKernel`.
    """

    turn: Tensor

    def __init__(
        self,
        d_model: int,
        channels: int,
        l_max: int | None,
        lr: Rate,
        wd: Rate,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(d_model, channels, l_max, lr, wd, device, dtype)
        if channels not in (2, 4):
            raise ValueError(f"complex states have 2 channels a direction and trank=1, got {channels} channels")
        if channels == 4:
            angle = 2 * math.pi * torch.rand(d_model, dtype=torch.float64, device="cpu")
            self.add_parameter("turn", torch.stack((torch.cos(angle), torch.sin(angle)), -1), "C", decay=True)

    @classmethod
    @abstractmethod
    def modes(cls, kernels: Sequence[Any], rates: Sequence[float]) -> tuple[Pair, Pair]:
        """The logarithm of lambda and the gain g of a batch, (G, P) both."""

    def signature(self, length: int, rate: float) -> Hashable:
        """The shapes and options."""
        return tuple((name, p.shape, p.dtype) for name, p in self.named_parameters()), self.channels

    @classmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """See `AxisKernel`."""
        log_mode, gain = cls.modes(kernels, rates)
        gains = [gain]
        if kernels[0].channels == 4:
            gains.append(mul(gain, from_last_axis(stack([k.turn for k in kernels]))))
        # The imaginary part of z is the real part of -i z.
        parts = [part for g in gains for part in (g, Pair(g.im, -g.re))]
        weight = Pair(*(torch.stack(list(t), 1).unsqueeze(-1) for t in zip(*parts, strict=True)))
        return modes_taps(Pair(*(t.unsqueeze(-1) for t in log_mode)), weight, length)

    def system(self, length: int | None = None, rate: float = 1.0) -> System:
        """See `AxisKernel`; one real system of two states a complex one."""
        log_mode, _ = self.modes([self], [rate])
        size = torch.exp(log_mode.re[0])
        re, im = size * torch.cos(log_mode.im[0]), size * torch.sin(log_mode.im[0])
        A = torch.stack((torch.stack((re, -im), -1), torch.stack((im, re), -1)), -2)
        # The gains: the taps at lag 0.
        pairs = self.generate_batch([self], 1, [rate])[0, :, :, 0].unflatten(0, (-1, 2))
        C = torch.stack((torch.stack((pairs[:, 0], -pairs[:, 1]), -1), torch.stack((pairs[:, 1], pairs[:, 0]), -1)), 1)
        return System(A, torch.eye(2, dtype=A.dtype, device=A.device)[0].expand(len(re), 2), C.flatten(0, 1))


class S5States(StateKernel):
    """States of S5: lambda = e^{dt A} and g = (e^{dt A} - 1) / A, with a step size a state.

    Args:
        d_model, channels, l_max, lr, wd, device, dtype: see `StateKernel`.
        d_state: of `S4ND`; not used.
        A: (P,) complex, initial continuous states; real parts negative.
        dt_min, dt_max: range of the initial step sizes.
        disc: "zoh" or "bilinear".
        bandlimit: leave out states above this fraction of the Nyquist frequency at rate 1; None for none.
    """

    log_dt: Tensor
    A_real: Tensor
    A_imag: Tensor

    def __init__(
        self,
        d_model: int,
        d_state: int,
        channels: int,
        l_max: int | None = None,
        *,
        A: Tensor,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        disc: str = "zoh",
        bandlimit: float | None = None,
        lr: Rate = None,
        wd: Rate = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels, l_max, lr, wd, device, dtype)
        if disc not in ("zoh", "bilinear"):
            raise ValueError(f"disc={disc!r}: choose from zoh, bilinear")
        self.disc, self.bandlimit = disc, bandlimit
        with torch.device("cpu"):
            self.add_parameter("log_dt", initial_steps((d_model, 1), dt_min, dt_max, "exp", False).squeeze(-1), "dt")
            self.add_parameter("A_real", torch.log(-A.real), "A")
            self.add_parameter("A_imag", A.imag, "A")

    def signature(self, length: int, rate: float) -> Hashable:
        """The shapes and options."""
        return super().signature(length, rate), self.disc, self.bandlimit

    @classmethod
    def modes(cls, kernels: Sequence[Any], rates: Sequence[float]) -> tuple[Pair, Pair]:
        """See `StateKernel`."""
        log_dt, real, imag = (stack([getattr(k, name) for k in kernels]) for name in ("log_dt", "A_real", "A_imag"))
        dt, A = positive(log_dt, "exp"), Pair(-positive(real, "exp"), imag)
        gain = Pair(torch.full_like(A.re, 0.5), torch.zeros_like(A.re))  # diagonal_modes doubles it
        if kernels[0].bandlimit is not None:
            gain = scale(gain, in_band(dt, A.im, kernels[0].bandlimit))
        steps = torch.stack([step * rate for step, rate in zip(dt.unbind(0), rates, strict=True)])
        # One state a feature: the trailing axes are its one state, and the one channel of the gain.
        columns = [Pair(t.re.unsqueeze(-1), t.im.unsqueeze(-1)) for t in (A, gain)]
        weight = Pair(columns[1].re.unsqueeze(1), columns[1].im.unsqueeze(1))
        log_mode, g = diagonal_modes(steps.unsqueeze(-1), columns[0], weight, kernels[0].disc)
        return Pair(*(t.squeeze(-1) for t in log_mode)), Pair(*(t.squeeze(-1).squeeze(1) for t in g))


class LRUStates(StateKernel):
    """States of LRU: lambda = exp(-e^nu + i e^theta), g = e^gamma, which starts at sqrt(1 - |lambda|^2).

    There is no continuous time, hence one rate only.

    Args:
        d_model, channels, l_max, lr, wd, device, dtype: see `StateKernel`.
        d_state: of `S4ND`; not used.
        r_min, r_max: radii of the ring from which lambda starts, uniform in it.
        max_phase: largest initial phase, in radians.
    """

    nu_log: Tensor
    theta_log: Tensor
    gamma_log: Tensor

    def __init__(
        self,
        d_model: int,
        d_state: int,
        channels: int,
        l_max: int | None = None,
        *,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
        lr: Rate = None,
        wd: Rate = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels, l_max, lr, wd, device, dtype)
        if not (0 <= r_min < r_max <= 1 and max_phase > 0):
            raise ValueError(
                f"the ring needs 0 <= r_min < r_max <= 1 and max_phase > 0, got {r_min}, {r_max} and {max_phase}"
            )
        radius, phase = torch.rand(2, d_model, dtype=torch.float64, device="cpu").clamp(1e-6, 1 - 1e-6)
        square = radius * (r_max**2 - r_min**2) + r_min**2
        self.add_parameter("nu_log", torch.log(-0.5 * torch.log(square)), "A")
        self.add_parameter("theta_log", torch.log(max_phase * phase), "A")
        self.add_parameter("gamma_log", 0.5 * torch.log(1 - square), "B")

    def signature(self, length: int, rate: float) -> Hashable:
        """The shapes."""
        if rate != 1:
            raise ValueError(f"LRU has no step size to change: rate must be 1, got {rate}; use s5")
        return super().signature(length, rate)

    @classmethod
    def modes(cls, kernels: Sequence[Any], rates: Sequence[float]) -> tuple[Pair, Pair]:
        """See `StateKernel`."""
        nu, theta, gamma = (stack([getattr(k, n) for k in kernels]) for n in ("nu_log", "theta_log", "gamma_log"))
        gain = torch.exp(gamma)
        return Pair(-torch.exp(nu), torch.exp(theta)), Pair(gain, torch.zeros_like(gain))


class StateFilter(S4ND):
    """Convolves complex maps, state by state, with outer products of complex kernels.

    One axis after the other: four real products an axis, where an N-D product of complex kernels is one of 2^d real
    outer products of d axes.

    Args:
        states: P.
        kernel: makes the kernels, a `StateKernel`.
        options: of `S4ND`.

    Shape:
        (B, 2, P, *grid), real and imaginary part of each map -> the same.
    """

    def __init__(self, states: int, kernel: Callable[..., AxisKernel], **options: Any) -> None:
        super().__init__(states, channels=2, kernel=kernel, skip=False, **options)

    def forward(self, u: Tensor, rate: Rates | None = None, kernels: AxisKernels | None = None) -> Tensor:
        """Filter complex maps; see the class, and `S4ND` for `rate` and `kernels`."""
        taps, centers = self.kernels(u.shape[3:], rate) if kernels is None else kernels
        options: dict[str, Any] = {"precision": self._precision(u), "backend": self.backend}
        for axis, (kernel, center) in enumerate(zip(taps, centers, strict=True)):
            lines = u.movedim((2, axis + 3), (-2, -1))  # (B, 2, ..., P, L)
            y = long_conv_nd(lines.flatten(0, -3), [kernel], centers=center, **options)
            (re_re, re_im), (im_re, im_im) = (
                part.unbind(-3) for part in y.view(*lines.shape[:-2], *y.shape[1:]).unbind(1)
            )
            u = torch.stack((re_re - im_im, re_im + im_re), 1).movedim((-2, -1), (2, axis + 3))
        return u
