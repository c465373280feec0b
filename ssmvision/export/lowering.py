"""Our operators as standard ones: a decomposition table for `torch.export` programs.

Everything but the selective scan comes down to PyTorch's own operators, by the reference backends; the scan stays one
operator, for whatever the program is translated to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssmvision.kernels.branch import op as branch
from ssmvision.kernels.causal_conv import op as causal_conv
from ssmvision.kernels.channel_means import op as channel_means
from ssmvision.kernels.channel_scale import op as channel_scale
from ssmvision.kernels.depthwise_conv import op as depthwise_conv
from ssmvision.kernels.projected_scan.args import unpack
from ssmvision.kernels.s4nd.two_sided import AxisKernels
from ssmvision.kernels.subgrids import op as subgrids
from ssmvision.layers.mamba import MambaMixer
from ssmvision.layers.s4nd import S4ND

__all__ = ["decompositions", "in_double", "layer_by_layer", "with_held_kernels"]

Function = Callable[..., Any]


def with_held_kernels(model: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """A copy on the CPU for exporting, in evaluation mode and float32.

    Its S4ND layers hold the kernels that these inputs ask for, so that a graph need not generate them.

    Args:
        model: stays as it is.
        inputs: of `forward`.
    """
    copied = copy.deepcopy(model).float().cpu().eval()
    with torch.no_grad():
        copied(*inputs)
    for module in copied.modules():
        if isinstance(module, S4ND) and module._cache is not None:
            _hold_kernels(module, module._cache[1])
    return copied


def layer_by_layer(model: nn.Module, inputs: Sequence[Tensor]) -> nn.Module:
    """As `with_held_kernels`, and its Mamba mixers run their layers one by one, which come down to standard ones."""
    copied = with_held_kernels(model, inputs)
    for module in copied.modules():
        if isinstance(module, MambaMixer):
            module.fused = False
    return copied


def in_double(model: nn.Module) -> nn.Module:
    """A copy in float64 of what `with_held_kernels` or `layer_by_layer` made, with the kernels that it holds."""
    copied = copy.deepcopy(model).double()
    for module in copied.modules():
        if isinstance(module, S4ND) and "kernels" in module.__dict__:
            held = module.kernels(())
            _hold_kernels(module, AxisKernels(tuple(taps.double() for taps in held.taps), held.centers))
    return copied


def _hold_kernels(layer: S4ND, made: AxisKernels) -> None:
    held = AxisKernels(tuple(taps.detach().clone() for taps in made.taps), made.centers)
    layer.__dict__["kernels"] = lambda grid, rate=None: held
    layer.__dict__["_keeps"] = lambda: True


def decompositions() -> dict[Any, Function]:
    """PyTorch's own table of decompositions with ours added."""
    ours = torch.ops.ssmvision
    parts: dict[Any, Function] = {
        torch.ops.aten._native_batch_norm_legit.no_stats: _batch_norm,
        ours.branch_norm.default: _by(branch._norm, "reference"),
        ours.branch_sum.default: _by(branch._sum, "reference"),
        ours.causal_conv.default: _by(causal_conv._forward, "reference"),
        ours.channel_means.default: _by(channel_means._forward, "reference"),
        ours.channel_scale.default: _by(channel_scale._forward, "reference"),
        ours.depthwise_conv.default: _by(depthwise_conv._forward, "reference"),
        ours.long_conv_nd.default: _long_conv,
        ours.projected_scan.default: _projected_scan,
        ours.subgrid_conv.default: _by(subgrids._conv_forward, "reference"),
        ours.subgrid_norm.default: _by(subgrids._norm_forward, "reference"),
    }
    table: dict[Any, Function] = dict(torch.export.default_decompositions())
    return table | parts


def _by(implementation: Function, backend: str) -> Function:
    """An operator's implementation with its last argument, the backend, fixed."""
    return lambda *args: implementation(*args[:-1], backend)


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, training: bool, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A norm by the batch's own mean and variance, of x (B, C, *spatial); instance norms are such norms, of B = 1."""
    mean = _channel_means(x)
    centered = x - mean.view(1, -1, *[1] * (x.dim() - 2))
    var = _channel_means(centered * centered)
    out: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._native_batch_norm_legit_no_training.default(
        x, weight, bias, mean, var, momentum, eps
    )
    return out


def _channel_means(x: Tensor) -> Tensor:
    """(B, C, *spatial) -> (C,), axis by axis: ONNX Runtime's sums of whole volumes are off by 4e-6, those by 1e-7."""
    while x.dim() > 2:
        x = x.mean(-1)
    return x.mean(0)


def _projected_scan(
    x: Tensor,
    projected: Tensor,
    dt_weight: Tensor,
    A: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    routes: str,
    merge: str,
    save_states: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Projection of the step sizes, then the selective scan."""
    grid = projected.shape[1:-2]
    low, B, C = unpack(projected.flatten(1, -3), dt_weight.shape[2], A.shape[2])
    delta = torch.matmul(low.float(), dt_weight.float().transpose(1, 2))
    delta, B, C = (t.unflatten(2, tuple(grid)) for t in (delta, B, C))
    scan = torch.ops.ssmvision.selective_scan.default
    out = scan(x, delta, A, B, C, D, None, delta_bias, True, routes, merge, False, "auto")[0]
    return out, x.new_empty(0)


def _long_conv(
    u: Tensor,
    kernels: Sequence[Tensor],
    centers: Sequence[int],
    D: Tensor | None,
    dense: bool,
    precision: str,
    backend: str,
) -> Tensor:
    """One Toeplitz matrix product per axis: u (B, H, *grid), kernels (R, C, H, T) of each axis, D (C, H)."""
    rank, channels, features, _ = kernels[0].shape
    grid, dims = u.shape[2:], len(kernels)
    systems = features * rank * channels
    # Systems in front, so that each axis is one batched product: (H R C, B, *grid).
    x = u.transpose(0, 1).repeat_interleave(rank * channels, 0)
    for axis, (taps, center) in enumerate(zip(kernels, centers, strict=True)):
        matrix = _toeplitz(taps.permute(2, 0, 1, 3).flatten(0, 2), center, grid[axis])
        line = x.movedim(2 + axis, -1)
        product = torch.bmm(line.reshape(systems, -1, grid[axis]), matrix.transpose(1, 2))
        x = product.reshape(line.shape).movedim(-1, 2 + axis)
    x = x.reshape(features, rank, channels, -1, *grid).sum(1)
    y = x.permute(2, 1, 0, *range(3, 3 + dims))  # (B, C, H, *grid)
    if D is not None:
        y = y + D.reshape(1, *D.shape, *[1] * dims) * u.unsqueeze(1)
    return y.sum(2) if dense else y.contiguous()


def _toeplitz(taps: Tensor, center: int, length: int) -> Tensor:
    """(..., T) -> (..., L, L): row i, column j holds the tap of lag i - j, zero beyond the taps."""
    place = torch.arange(length).unsqueeze(1) - torch.arange(length) + center
    known = (place >= 0) & (place < taps.shape[-1])
    picked = taps[..., place.clamp(0, taps.shape[-1] - 1)]
    return picked * known.to(picked.dtype)
