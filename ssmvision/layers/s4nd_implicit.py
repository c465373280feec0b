"""Convolution kernels that a small network makes of the lag: those of TNN and of Hyena.

Sources: Qin et al., "Toeplitz Neural Network for Sequence Modeling" (arXiv 2305.04749), sections 3.1-3.2; Poli et al.,
"Hyena Hierarchy: Towards Larger Convolutional Language Models" (arXiv 2302.10866), section 3.3.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.kernels.s4nd.linear_system import System
from ssmvision.layers.s4nd_kernel import AxisKernel

__all__ = ["HyenaKernel", "HyenaNetwork", "ImplicitKernel", "TNNKernel", "Window", "evaluate"]


class ImplicitKernel(AxisKernel):
    """Taps k[l] = f(l rate) rate of a function of the lag, which has a sign: one function for both directions.

    Args:
        d_model: H.
        channels: C; of a two-sided kernel the second half are the taps at the lags -1 - l of the first.
        l_max, device, dtype: see `AxisKernel`.
        two_sided: whether there is such a second half.
    """

    signed_lags = True

    def __init__(
        self,
        d_model: int,
        channels: int,
        l_max: int | None,
        two_sided: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__(d_model, channels, l_max, None, 0.0, device, dtype)
        self.sides = 2 if two_sided else 1
        self.factory: dict[str, Any] = {"device": self._device, "dtype": self._dtype}

    @abstractmethod
    def response(self, lags: Tensor) -> Tensor:
        """The function at lags (S, L) in steps of the trained rate: (S, L, C / sides, H)."""

    def signature(self, length: int, rate: float) -> Hashable:
        """Every kernel for itself: each has its own network."""
        return id(self), length, rate

    @classmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """See `AxisKernel`."""
        kernel, rate = kernels[0], rates[0]
        example = next(kernel.parameters())
        wide = torch.promote_types(example.dtype, torch.float32)
        ahead = torch.arange(length, device=example.device, dtype=wide)
        lags = ahead.unsqueeze(0) if kernel.sides == 1 else torch.stack((ahead, -1 - ahead))
        taps: Tensor = kernel.response(lags * rate)
        return rate * taps.permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(0)

    def system(self, length: int | None = None, rate: float = 1.0) -> System:
        """None: a function of the lag is no recurrence.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"a {type(self).__name__} is no recurrence and has no states; convolve with it, or use s4d")


def evaluate(network: nn.Module, position: Tensor) -> Tensor:
    """A network of positions in their dtype, whatever that of its parameters: half precision is too coarse for lags."""
    if next(network.parameters()).dtype == position.dtype:
        y: Tensor = network(position)
    else:
        wide = {name: parameter.to(position.dtype) for name, parameter in network.named_parameters()}
        y = torch.func.functional_call(network, wide, (position,))
    return y


class TNNKernel(ImplicitKernel):
    """TNN's relative position encoding: decay^|l| MLP(l), the MLP of linear maps, layer norms and relu.

    Args:
        d_model, channels, l_max, two_sided, device, dtype: see `ImplicitKernel`.
        d_state: width of the MLP.
        layers: hidden maps of the MLP.
        decay: lambda.

    Raises:
        ValueError: a decay outside (0, 1].
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 32,
        channels: int = 1,
        l_max: int | None = None,
        *,
        two_sided: bool = False,
        layers: int = 3,
        decay: float = 0.99,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels, l_max, two_sided, device, dtype)
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1], got {decay}")
        self.decay = decay
        outputs = d_model * channels // self.sides
        widths = [d_state] * (layers + 1) + [outputs]
        maps: list[nn.Module] = [nn.Linear(1, d_state, **self.factory)]
        for width, out in pairwise(widths):
            maps += [nn.LayerNorm(width, **self.factory), nn.ReLU(), nn.Linear(width, out, **self.factory)]
        self.network = nn.Sequential(*maps)
        self._scale_to_unit_norm(maps[-1])

    @torch.no_grad()
    def _scale_to_unit_norm(self, last: nn.Module) -> None:
        """Taps start at a variance of 1 / 6, of which an outer product over the axes would make a large response."""
        memory = 1 / max(1 - self.decay**2, 0.01)
        for parameter in last.parameters():
            parameter.mul_(min(1.0, math.sqrt(6 / (self.sides * memory))))

    def response(self, lags: Tensor) -> Tensor:
        """See `ImplicitKernel`."""
        taps = evaluate(self.network, lags.unsqueeze(-1)) * torch.pow(self.decay, lags.abs()).unsqueeze(-1)
        apart: Tensor = taps.unflatten(-1, (-1, self.d_model))
        return apart


class HyenaNetwork(nn.Module):
    """Hyena's feed-forward network of positions: linear maps with sine activations on a few Fourier features.

    Args:
        axes: coordinates of a position.
        bands: frequencies of each coordinate.
        width: of the hidden layers.
        outputs: results.
        frequency: initial frequency of the sines, trained.
        device, dtype: of the parameters.
    """

    def __init__(
        self, axes: int, bands: int, width: int, outputs: int, frequency: float = 10.0, **factory: Any
    ) -> None:
        super().__init__()
        if bands < 1:
            raise ValueError(f"bands must be at least 1, got {bands}")
        self.bands = bands
        widths = [axes * (1 + 2 * bands), width, width, width]
        self.hidden = nn.ModuleList(nn.Linear(n, m, **factory) for n, m in pairwise(widths))
        self.frequency = nn.Parameter(torch.full((width,), float(frequency), **factory))
        self.out = nn.Linear(width, outputs, bias=False, **factory)

    def forward(self, position: Tensor) -> Tensor:
        """Positions (..., axes), about 1 at the reference length -> (..., outputs)."""
        top = max(self.bands - 1, 1)
        frequencies = torch.linspace(1e-4, top, self.bands, device=position.device, dtype=position.dtype)
        angle = (2 * math.pi * position.unsqueeze(-1) * frequencies).flatten(-2)
        x = torch.cat((position, torch.cos(angle), -torch.sin(angle)), -1)
        for layer in self.hidden:
            x = torch.sin(self.frequency * layer(x))
        y: Tensor = self.out(x)
        return y


@dataclass(frozen=True)
class Window:
    """Hyena's window e^{-t alpha_h} + shift over the distance t in reference lengths.

    Attributes:
        features: H.
        reference: length at which t is 1, in steps of rate 1.
        fast, slow: t at which the exponential of the last and of the first feature has fallen to 1 %; alpha is spread
            evenly between.
        shift: what the window does not fall below.

    Raises:
        ValueError: lengths that are not positive.
    """

    features: int
    reference: int
    fast: float
    slow: float
    shift: float

    def __post_init__(self) -> None:
        if self.reference < 1 or not 0 < self.fast <= self.slow:
            raise ValueError(
                "a window needs reference >= 1 and 0 < fast_decay <= slow_decay, "
                f"got {self.reference}, {self.fast} and {self.slow}"
            )

    def __call__(self, t: Tensor) -> Tensor:
        """Distances (..., 1) -> (..., H)."""
        return torch.exp(-t * self.alpha(t)) + self.shift

    def alpha(self, like: Tensor) -> Tensor:
        """The decays (H,), of the device and dtype of a tensor."""
        ends = 1 / self.slow, 1 / self.fast
        return -math.log(0.01) * torch.linspace(*ends, self.features, device=like.device, dtype=like.dtype)


class HyenaKernel(ImplicitKernel):
    """Hyena's implicit filter: (e^{-|t| alpha_h} + shift) FFN(t), t = l / reference.

    Args:
        d_model, channels, l_max, two_sided, device, dtype: see `ImplicitKernel`.
        d_state: width of the network.
        bands, frequency: see `HyenaNetwork`.
        reference, fast_decay, slow_decay, shift: see `Window`.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 64,
        channels: int = 1,
        l_max: int | None = None,
        *,
        two_sided: bool = False,
        bands: int = 8,
        frequency: float = 10.0,
        reference: int = 64,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
        shift: float = 0.05,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, channels, l_max, two_sided, device, dtype)
        self.window = Window(d_model, reference, fast_decay, slow_decay, shift)
        self.network = HyenaNetwork(1, bands, d_state, d_model * channels // self.sides, frequency, **self.factory)

    def response(self, lags: Tensor) -> Tensor:
        """See `ImplicitKernel`."""
        t = (lags / self.window.reference).unsqueeze(-1)
        taps: Tensor = evaluate(self.network, t).unflatten(-1, (-1, self.d_model))
        return taps * self.window(t.abs()).unsqueeze(-2)
