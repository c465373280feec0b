"""What every 1D kernel of S4ND is as a module: parameters with their optimizer rules, and generation in batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from ssmvision.kernels.s4nd.discretize import inverse_positive
from ssmvision.kernels.s4nd.linear_system import System

__all__ = ["AxisKernel", "Rate", "generate", "initial_steps", "stack"]

Rate = float | Mapping[str, float] | None


class AxisKernel(nn.Module, ABC):
    """The causal convolution kernels of one axis: `channels` of them for each of `d_model` features.

    Args:
        d_model: H.
        channels: C.
        l_max: longest kernel; None for any length.
        lr: learning rate of all state-space parameters, or by kind ("dt", "A", "B", "C"); kinds that are not named,
            and None, follow the optimizer. 0 makes a buffer of the parameter.
        wd: the same for weight decay; C always follows the optimizer.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        d_model: int,
        channels: int = 1,
        l_max: int | None = None,
        lr: Rate = None,
        wd: Rate = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("d_model", d_model), ("channels", channels), ("l_max", 1 if l_max is None else l_max)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.d_model, self.channels, self.l_max = d_model, channels, l_max
        self._lr, self._wd = lr, wd
        # Initial systems are made on the CPU (of eigenvectors, in float64) and moved where a new tensor would be.
        self._device = torch.get_default_device() if device is None else torch.device(device)
        self._dtype = torch.get_default_dtype() if dtype is None else dtype
        self.rules: dict[str, dict[str, float]] = {}

    def add_parameter(self, name: str, value: Tensor, kind: str, decay: bool = False) -> None:
        """Register a parameter, or a buffer where its learning rate is 0.

        Args:
            name: of the parameter.
            value: its initial value.
            kind: whose learning rate it has: "dt", "A", "B" or "C".
            decay: whether weight decay is the optimizer's; else it is that of the kind.
        """
        value = value.contiguous().to(device=self._device, dtype=self._dtype)
        lr = self._lr.get(kind) if isinstance(self._lr, Mapping) else self._lr
        wd = self._wd.get(kind) if isinstance(self._wd, Mapping) else self._wd
        if lr == 0:
            self.register_buffer(name, value)
            return
        rule = {} if lr is None else {"lr": float(lr)}
        if wd is not None and not decay:
            rule["weight_decay"] = float(wd)
        self.rules[name] = rule
        self.register_parameter(name, nn.Parameter(value))
        self._mark()

    @property
    def device(self) -> torch.device:
        """Where the parameters are now."""
        return next(t.device for t in chain(self.parameters(), self.buffers()))

    def _mark(self) -> None:
        """The attribute by which training scripts of the S4 authors find the rules."""
        for name, rule in self.rules.items():
            getattr(self, name)._optim = dict(rule)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._mark()  # copies of a parameter lose its attributes

    def set_l_max(self, l_max: int | None) -> None:
        """Change the longest kernel."""
        self.l_max = l_max

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        return {name for name, rule in self.rules.items() if rule.get("weight_decay") == 0}

    def forward(self, length: int, rate: float = 1.0) -> Tensor:
        """Kernels (channels, d_model, length) at a sampling step of `rate` times the trained one."""
        return generate([self], [length], [rate])[0]

    @abstractmethod
    def signature(self, length: int, rate: float) -> Hashable:
        """Kernels with equal signatures can be generated together."""

    @classmethod
    @abstractmethod
    def generate_batch(cls, kernels: Sequence[Any], length: int, rates: Sequence[float]) -> Tensor:
        """Kernels of one signature at once: (len(kernels), channels, d_model, length)."""

    @abstractmethod
    def system(self, length: int | None = None, rate: float = 1.0) -> System:
        """The recurrence whose impulse response starts with this kernel; `length` matters for "dss" only."""


def generate(
    kernels: Sequence[AxisKernel],
    lengths: Sequence[int],
    rates: Sequence[float],
    finish: Callable[[Tensor], Tensor] = lambda taps: taps,
) -> list[Tensor]:
    """Kernels (channels, d_model, length) of several axes (or layers), those of one form in one batch.

    Args:
        kernels: the modules.
        lengths: taps wanted of each.
        rates: sampling step of each, as a multiple of the trained one.
        finish: what to make of (..., channels, d_model, length).

    Raises:
        ValueError: a rate is not positive and finite, or a kernel cannot be resampled.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, (kernel, length, rate) in enumerate(zip(kernels, lengths, rates, strict=True)):
        if not 0 < rate < math.inf:
            raise ValueError(f"rate must be positive and finite, got {rate}")
        groups.setdefault((type(kernel), kernel.signature(length, rate)), []).append(i)
    out: list[Tensor] = [torch.empty(0)] * len(kernels)
    for members in groups.values():
        longest = max(lengths[i] for i in members)
        kind = type(kernels[members[0]])
        batch = kind.generate_batch([kernels[i] for i in members], longest, [rates[i] for i in members])
        # Open sizes of a compiler are sliced even where they agree, so that it need not ask.
        if all(statically_known_true(lengths[i] == longest) for i in members):
            finished = finish(batch).unbind(0)
        else:
            finished = tuple(finish(taps[..., : lengths[i]]) for taps, i in zip(batch.unbind(0), members, strict=True))
        for taps, i in zip(finished, members, strict=True):
            out[i] = taps
    return out


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """A leading axis over kernels, in at least float32."""
    wide = tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
    return wide.to(torch.promote_types(wide.dtype, torch.float32))


def initial_steps(shape: tuple[int, int], dt_min: float, dt_max: float, transform: str, spread: bool) -> Tensor:
    """Trained form of step sizes, log-uniform in [dt_min, dt_max], or evenly spread over the features."""
    if not 0 < dt_min <= dt_max:
        raise ValueError(f"step sizes need 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
    low, high = math.log(dt_min), math.log(dt_max)
    if spread:
        log_dt = torch.linspace(low, high, shape[0]).unsqueeze(-1).expand(shape).clone()
    else:
        log_dt = torch.rand(*shape) * (high - low) + low
    return log_dt if transform == "exp" else inverse_positive(torch.exp(log_dt), transform)
