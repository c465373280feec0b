"""The definition in plain PyTorch, on any device; float64 stays float64, everything else is computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward"]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _offset(route: str, tap: int, width: int) -> int:
    """Position that a tap reads, relative to the output's."""
    return width - 1 - tap if route == "backward" else tap - width + 1


def _shift(x: Tensor, offset: int) -> Tensor:
    """y[:, t] = x[:, t + offset], zero beyond the ends."""
    ahead = max(offset, 0)
    return F.pad(x, (0, 0, max(-offset, 0), ahead))[:, ahead : ahead + x.shape[1]]


def _pre_activation(x: Tensor, weight: Tensor, bias: Tensor | None, route: str) -> Tensor:
    """One direction: x (B, L, E), weight (E, W), bias (E,) -> (B, L, E)."""
    taps, pad = weight.unsqueeze(1), (weight.shape[-1] - 1, 0)
    if route == "backward":
        taps, pad = taps.flip(-1), pad[::-1]
    return F.conv1d(F.pad(x.transpose(1, 2), pad), taps, bias, groups=x.shape[-1]).transpose(1, 2)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routes: tuple[str, ...],
    silu: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve every direction.

    Args:
        x: (B, L, E).
        weight: (K, E, W), any floating dtype.
        bias: (K, E), any floating dtype, or None.
        routes: K times "forward" or "backward".
        silu: apply SiLU.
        out: (B, K, L, E) to write to; a new tensor where None.

    Returns:
        (B, K, L, E) in x's dtype.
    """
    wide = _wide(x.dtype)
    if out is None:
        out = x.new_empty(x.shape[0], len(routes), *x.shape[1:])
    if x.numel() == 0:
        return out
    for k, route in enumerate(routes):
        pre = _pre_activation(x.to(wide), weight[k].to(wide), None if bias is None else bias[k].to(wide), route)
        out[:, k].copy_(F.silu(pre) if silu else pre)
    return out


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routes: tuple[str, ...],
    silu: bool,
    dout: Tensor,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`, from its inputs and the gradient of its result.

    Args:
        x, weight, bias, routes, silu: as given to `forward`.
        dout: (B, K, L, E).
        dx: (B, L, E) in x's dtype to write to; a new tensor where None.

    Returns:
        dx, summed over the directions, dweight and dbias, each in its tensor's dtype; dbias is None without a bias.
    """
    wide, width = _wide(x.dtype), weight.shape[-1]
    total, input_, taps = torch.zeros(x.shape, dtype=wide, device=x.device), x.to(wide), weight.to(wide)
    dweight = torch.zeros(weight.shape, dtype=wide, device=x.device)
    dbias = torch.zeros(weight.shape[:2], dtype=wide, device=x.device)
    for k, route in enumerate(routes if x.numel() else ()):
        dpre = dout[:, k].to(wide)
        if silu:
            pre = _pre_activation(input_, taps[k], None if bias is None else bias[k].to(wide), route)
            gate = torch.sigmoid(pre)
            dpre = dpre * gate * (1 + pre * (1 - gate))
        dbias[k] = dpre.sum((0, 1))
        for tap in range(width):
            offset = _offset(route, tap, width)
            total += _shift(dpre * taps[k, :, tap], -offset)
            dweight[k, :, tap] = (dpre * _shift(input_, offset)).sum((0, 1))
    dx = total.to(x.dtype) if dx is None else dx.copy_(total)
    return dx, dweight.to(weight.dtype), None if bias is None else dbias.to(bias.dtype)
