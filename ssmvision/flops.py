"""Multiply-accumulates of any model by one rule, without a profiler and, on the meta device, without computing.

Counted are the multiply-accumulates of matrix products and convolutions (padding included), and two for each step,
channel and state of a selective scan. Not counted: everything elementwise (activations, norms, gates, skips, the
scan's exponentials), reductions, pooling, resampling and Fourier transforms. Our operators count the same whichever
backend runs them. Papers count scans otherwise: VMamba's and MambaVision's tables give 9 operations where this rule
gives 2 multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssmvision.kernels.causal_conv import flops as causal_conv
from ssmvision.kernels.causal_conv import op as _causal_conv_op  # noqa: F401  (the operators must exist)
from ssmvision.kernels.depthwise_conv import flops as depthwise_conv
from ssmvision.kernels.depthwise_conv import op as _depthwise_conv_op  # noqa: F401
from ssmvision.kernels.mamba_mixer import flops as mamba_mixer
from ssmvision.kernels.projected_scan import flops as projected_scan
from ssmvision.kernels.projected_scan import op as _projected_scan_op  # noqa: F401
from ssmvision.kernels.s4nd import dplr_op, modes_op  # noqa: F401
from ssmvision.kernels.s4nd import flops as s4nd
from ssmvision.kernels.s4nd import op as _s4nd_op  # noqa: F401
from ssmvision.kernels.selective_scan import flops as selective_scan
from ssmvision.kernels.ssd import flops as ssd
from ssmvision.kernels.ssd import op as _ssd_op  # noqa: F401
from ssmvision.kernels.subgrids import flops as _subgrid_flops  # noqa: F401  (registers a formula of its own)

__all__ = ["Count", "count", "formulas"]

Shape = Sequence[int]


@dataclass(frozen=True)
class Count:
    """What one forward is.

    Attributes:
        macs: multiply-accumulates.
        by_operator: the same for each operator, largest first.
        by_module: the same for each module by its name, modules inside included; the model itself is "".
    """

    macs: int
    by_operator: dict[str, int]
    by_module: dict[str, int]

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiplication and an addition each."""
        return 2 * self.macs


def count(model: nn.Module, *inputs: Tensor) -> Count:
    """Multiply-accumulates of `model(*inputs)`, without gradients and in the mode (train or eval) that the model is in.

    Args:
        model: any module. Built under `torch.device("meta")` it counts without computing, in milliseconds.
        inputs: on the model's device.

    Example:
        >>> import torch
        >>> count(torch.nn.Linear(3, 5), torch.zeros(2, 3)).macs
        30
    """
    # Its formulas are handed over rather than registered: those of other counters in the process stay what they are.
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    with torch.no_grad(), counter:
        model(*inputs)
    found = counter.get_flop_counts()
    operators = {str(op): flops // 2 for op, flops in found.pop("Global", {}).items()}
    root = type(model).__name__
    modules = {name.removeprefix(root).removeprefix("."): sum(ops.values()) // 2 for name, ops in found.items()}
    ranked = sorted(operators.items(), key=lambda item: -item[1])
    return Count(sum(operators.values()), dict(ranked), modules)


def formulas() -> dict[Any, Callable[..., int]]:
    """Floating-point operations of our operators by their arguments' shapes, as `FlopCounterMode` takes them."""
    ops = torch.ops.ssmvision
    macs: dict[Any, Callable[..., int]] = {
        ops.selective_scan: selective_scan.forward_macs,
        ops.projected_scan: projected_scan.forward_macs,
        ops.mamba_mixer: _mixer_macs,
        ops.causal_conv: causal_conv.forward_macs,
        ops.depthwise_conv: depthwise_conv.forward_macs,
        ops.long_conv_nd: s4nd.convolution_macs,
        ops.mode_taps: s4nd.modes_macs,
        ops.s4_taps: s4nd.dplr_macs,
        ops.ssd: ssd.forward_macs,
    }
    return {op: _doubled(formula) for op, formula in macs.items()}


def _doubled(formula: Callable[..., int]) -> Callable[..., int]:
    return lambda *args, **kwargs: 2 * formula(*args, **kwargs)


def _mixer_macs(tokens: Shape, parameters: Sequence[Shape], routes: str, *args: Any, **kwargs: Any) -> int:
    """The mixer's layers, which its own formula counts, and its scans."""
    names = routes.split(",")
    channels, states = parameters[-2 * len(names)]  # A_log of the first direction
    layers = mamba_mixer.forward_flops(tokens, parameters, routes) // 2
    return layers + selective_scan.scan_macs(tokens[0], len(names) * tokens[1], channels, states)
