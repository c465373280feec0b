"""The definitions in plain PyTorch, on any device, and the gradients of every backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["conv_backward", "conv_forward", "join_subgrids", "norm_backward", "norm_forward", "split_subgrids"]


def split_subgrids(x: Tensor) -> Tensor:
    """The sub-grids (even rows, even columns), (odd, even), (even, odd), (odd, odd) of a channels-last map.

    Args:
        x: (B, H, W, C).

    Returns:
        (B, 4, h, w, C) with h = ceil(H / 2) and w = ceil(W / 2); an odd map gets a row or column of zeros. In memory
        the sub-grids come first, so that each is one matrix of all images for the projections of its route.
    """
    height, width = x.shape[1:3]
    if height % 2 or width % 2:
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2))
    pixels = x.unflatten(2, ((width + 1) // 2, 2)).unflatten(1, ((height + 1) // 2, 2))
    parts: Tensor = pixels.permute(4, 2, 0, 1, 3, 5).flatten(0, 1).transpose(0, 1)
    return parts


def join_subgrids(parts: Tensor, size: tuple[int, int]) -> Tensor:
    """The inverse of `split_subgrids`: (B, 4, h, w, C) -> (B, *size, C), without the padding."""
    pixels = parts.unflatten(1, (2, 2)).permute(0, 3, 2, 4, 1, 5)
    joined: Tensor = pixels.flatten(3, 4).flatten(1, 2)
    return joined[:, : size[0], : size[1]]


def _convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The depthwise convolution before SiLU, (B, H, W, E) in x's dtype."""
    maps = x.permute(0, 3, 1, 2)
    out = F.conv2d(maps, weight.to(x.dtype), bias.to(x.dtype), padding=1, groups=x.shape[3])
    return out.permute(0, 2, 3, 1)


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """SiLU of the depthwise convolution, sub-grids first.

    Args:
        x: (B, H, W, E).
        weight: (E, 1, 3, 3).
        bias: (E,).

    Returns:
        (4, B, h, w, E), contiguous, in x's dtype.
    """
    return split_subgrids(F.silu(_convolved(x, weight, bias))).transpose(0, 1).contiguous()


def conv_backward(x: Tensor, weight: Tensor, bias: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `conv_forward`, each contiguous in its tensor's dtype.

    The convolution is made again instead of being kept; its gradients are PyTorch's own.
    """
    joined = join_subgrids(dout.transpose(0, 1), (x.shape[1], x.shape[2]))
    d_conv = torch.ops.aten.silu_backward(joined, _convolved(x, weight, bias))
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        d_conv.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weight.to(x.dtype),
        list(bias.shape),
        [1, 1],
        [1, 1],
        [1, 1],
        False,
        [0, 0],
        x.shape[3],
        [True, True, True],
    )
    dweight, dbias = dweight.to(weight.dtype).contiguous(), dbias.to(bias.dtype)
    return dx.permute(0, 2, 3, 1).contiguous(), dweight, dbias


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def norm_forward(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """LayerNorm of the joined map, times the gate or its SiLU; computed in float32 or wider.

    Args:
        y: (B, 4, h, w, E).
        gate: (B, H, W, E).
        weight, bias: (E,), of the norm.
        eps: of the norm.
        silu: take the gate's SiLU.

    Returns:
        (B, H, W, E), contiguous, in y's dtype.
    """
    joined = _wide(join_subgrids(y, (gate.shape[1], gate.shape[2])))
    normed = F.layer_norm(joined, weight.shape, weight.to(joined.dtype), bias.to(joined.dtype), eps)
    scale = _wide(gate)
    return (normed * (F.silu(scale) if silu else scale)).to(y.dtype).contiguous()


def norm_backward(
    y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `norm_forward`, each contiguous in its tensor's dtype; the map is normed again."""
    joined = _wide(join_subgrids(y, (gate.shape[1], gate.shape[2]))).contiguous()
    wide = joined.dtype
    scale, dout, w, b = gate.to(wide), dout.to(wide), weight.to(wide), bias.to(wide)
    shape = list(weight.shape)
    normed, mean, rstd = torch.ops.aten.native_layer_norm(joined, shape, w, b, eps)
    d_scale = dout * normed
    d_gate = torch.ops.aten.silu_backward(d_scale, scale) if silu else d_scale
    d_normed = dout * (F.silu(scale) if silu else scale)
    d_joined, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        d_normed, joined, shape, mean, rstd, w, b, [True, True, True]
    )
    dy = split_subgrids(d_joined).contiguous()
    return dy.to(y.dtype), d_gate.to(gate.dtype).contiguous(), d_weight.to(weight.dtype), d_bias.to(bias.dtype)
