"""The definition in plain PyTorch, on any device; float64 stays float64, everything else is computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward"]


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In x's dtype and layout (B, H, W, C)."""
    taps = weight.to(x.dtype).unsqueeze(1)
    offset = None if bias is None else bias.to(x.dtype)
    out = F.conv2d(x.permute(0, 3, 1, 2), taps, offset, padding=weight.shape[-1] // 2, groups=x.shape[-1])
    return out.permute(0, 2, 3, 1)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve.

    Args:
        x: (B, H, W, C).
        weight: (C, k, k), any floating dtype, k odd.
        bias: (C,), or None.
        silu: apply SiLU.

    Returns:
        (B, H, W, C), contiguous, in x's dtype.
    """
    if x.numel() == 0:
        return torch.empty_like(x, memory_format=torch.contiguous_format)
    out = _convolve(_wide(x), weight, bias)
    return (F.silu(out) if silu else out).to(x.dtype).contiguous()


def backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `forward`, from its inputs and the gradient of its result.

    Args:
        x, weight, bias, silu: as given to `forward`.
        dout: (B, H, W, C).

    Returns:
        dx in x's dtype, dweight and dbias in theirs, contiguous; dbias None without a bias.
    """
    if x.numel() == 0:
        empty = torch.empty_like(x, memory_format=torch.contiguous_format)
        return empty, torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
    wide, taps = _wide(x), _wide(weight).to(_wide(x).dtype).unsqueeze(1)
    dpre = dout.to(wide.dtype)
    if silu:
        pre = _convolve(wide, weight, bias)
        gate = torch.sigmoid(pre)
        dpre = dpre * gate * (1 + pre * (1 - gate))
    pad, channels = weight.shape[-1] // 2, x.shape[-1]
    maps = (dpre.permute(0, 3, 1, 2), wide.permute(0, 3, 1, 2))
    same, none = [1, 1], [0, 0]
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        *maps, taps, [channels], same, [pad, pad], same, False, none, channels, [True, True, bias is not None]
    )
    dx = dx.permute(0, 2, 3, 1).to(x.dtype).contiguous()
    dweight = dweight.squeeze(1).to(weight.dtype).contiguous()
    return dx, dweight, None if bias is None else dbias.to(bias.dtype)
