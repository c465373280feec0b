"""The public function: argument checks in front of the operator."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ssmvision.kernels.checks import check_tensors
from ssmvision.kernels.depthwise_conv.op import conv

__all__ = ["MAX_SIDE", "depthwise_conv2d"]

MAX_SIDE = 7


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Literal["silu", "none"] = "silu",
    backend: str = "auto",
) -> Tensor:
    """Convolve every channel of a channels-last map with its own square kernel, zeros around the map.

    As torch.nn.functional.conv2d with `groups` the number of channels and `padding` half the kernel's side, which keeps
    the map's size; the layer in front of VMamba's scan (Liu et al., arXiv 2401.10166, figure 3). Computed in float32
    (float64 where x is), whatever the dtype or autocast. Gradients are deterministic; there is no second derivative.

    Args:
        x: (B, H, W, C) in any floating dtype, any strides; a view with unit stride along C is read in place.
        weight: (C, k, k) in any floating dtype, k odd, from 1 to 7.
        bias: (C,), or None.
        activation: "silu" or "none", applied to the result.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, H, W, C), contiguous, in x's dtype.

    Raises:
        ValueError: shapes, activation or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor.
    """
    _check(x, weight, bias)
    if activation not in ("silu", "none"):
        raise ValueError(f"activation must be 'silu' or 'none', got {activation!r}")
    out: Tensor = conv(x, weight, bias, activation == "silu", backend)
    return out


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tensors({"x": x, "weight": weight, "bias": bias}, "x")
    if x.dim() != 4:
        raise ValueError(f"x must be (B, H, W, C), got {tuple(x.shape)}")
    channels, side = x.shape[-1], weight.shape[-1] if weight.dim() else 0
    if tuple(weight.shape) != (channels, side, side) or side % 2 == 0 or side > MAX_SIDE:
        wanted = f"({channels}, k, k) with k odd, at most {MAX_SIDE}"
        raise ValueError(f"weight must have shape {wanted}, got {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (channels,):
        raise ValueError(f"bias must have shape {(channels,)}, got {tuple(bias.shape)}")
