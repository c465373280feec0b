"""The moving-average kernel of Mega as a module. Parameter names are those of the S4 authors' translation.

Source: Ma et al., "Mega: Moving Average Equipped Gated Attention" (arXiv 2209.10655), section 3.1.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.ema import ema_kernel, ema_modes
from ssmvision.kernels.s4nd.linear_system import System
from ssmvision.layers.s4nd_kernel import AxisKernel, Rate, stack

__all__ = ["EMAKernel"]


class EMAKernel(AxisKernel):
    """Mega's damped moving average: K[l] = sum_n p beta q^l gamma / sqrt(N), q = 1 - p sigmoid(alpha).

    Every feature and channel has its own parameters. There is no continuous time, hence one rate only.

    Args:
        d_model, channels, l_max, lr, wd: see `AxisKernel`.
        d_state: N modes.
        dt_tie: one p a feature.
        device, dtype: of the parameters.
    """

    delta: Tensor
    alpha: Tensor
    beta: Tensor
    gamma: Tensor

    def __init__(
        self,
        d_model: int,
        d_state: int = 2,
        channels: int = 1,
        l_max: int | None = None,
        *,
        dt_tie: bool = False,
        lr: Rate = None,
        wd: Rate = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels, l_max, lr, wd, device, dtype)
        rows = d_model * channels
        with torch.device("cpu"):
            sign = 1.0 - 2.0 * (torch.arange(d_state) % 2)
            self.add_parameter("delta", torch.randn(rows, 1 if dt_tie else d_state, 1) * 0.2, "dt")
            self.add_parameter("alpha", torch.randn(rows, d_state, 1) * 0.2, "dt")
            self.add_parameter("beta", torch.randn(rows, d_state, 1) * 0.02 + sign[:, None], "dt")
            self.add_parameter("gamma", torch.randn(rows, d_state), "C", decay=True)

    def signature(self, length: int, rate: float) -> Hashable:
        """The shapes."""
        if rate != 1:
            raise ValueError(f"an EMA kernel has no step size to change: rate must be 1, got {rate}; use s4d or s4")
        return tuple((p.shape, p.dtype) for p in (self.delta, self.gamma)), self.channels

    @classmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """See `AxisKernel`."""
        parts = [stack([getattr(k, name) for k in kernels]) for name in ("delta", "alpha", "beta", "gamma")]
        delta, alpha, beta, gamma = parts
        kernel = ema_kernel(delta, alpha, beta, gamma, length)
        return kernel.reshape(len(kernels), kernels[0].channels, kernels[0].d_model, length)

    def system(self, length: int | None = None, rate: float = 1.0) -> System:
        """See `AxisKernel`; one system a channel would be needed, so there is one channel only.

        Raises:
            ValueError: more than one channel, whose modes differ.
        """
        self.signature(0, rate)
        if self.channels != 1:
            raise ValueError(
                f"the {self.channels} channels of an EMA kernel have their own modes; step them one by one"
            )
        q, coefficient = ema_modes(self.delta, self.alpha, self.beta, self.gamma)
        return System(torch.diag_embed(q), torch.ones_like(q), coefficient.unsqueeze(0))
