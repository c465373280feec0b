"""The public function: argument checks in front of the operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ssmvision.kernels.causal_conv.op import conv
from ssmvision.kernels.checks import check_tensors

__all__ = ["MAX_TAPS", "causal_conv"]

MAX_TAPS = 8


def causal_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    routes: Sequence[str] = ("forward",),
    activation: Literal["silu", "none"] = "silu",
    backend: str = "auto",
) -> Tensor:
    """Depthwise causal convolution along a token sequence, in K directions from one read of the input.

    With taps w_0 ... w_{W-1}, the forward direction is y_t = bias + sum_j w_j x_{t-W+1+j} and the backward one
    y_t = bias + sum_j w_j x_{t+W-1-j}: causal along the reversed sequence, its result in the order of x. Beyond its
    ends the sequence is zero. Source: the convolution of the Mamba block (Gu and Dao, arXiv 2312.00752, section 3.4)
    and its second direction (Zhu et al., arXiv 2401.09417, algorithm 1).

    Computed in float32 (float64 where x is), whatever the dtype or autocast. Gradients are deterministic; there is no
    second derivative.

    Args:
        x: (B, L, E) in any floating dtype, any strides; a view with unit stride along E is read in place.
        weight: (K, E, W) in any floating dtype, W from 1 to 8.
        bias: (K, E), or None.
        routes: K times "forward" or "backward".
        activation: "silu" or "none", applied to the result.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, K, L, E), contiguous, in x's dtype.

    Raises:
        ValueError: shapes, routes, activation or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor.
    """
    names = (routes,) if isinstance(routes, str) else tuple(routes)
    _check(x, weight, bias, names)
    if activation not in ("silu", "none"):
        raise ValueError(f"activation must be 'silu' or 'none', got {activation!r}")
    out: Tensor = conv(x, weight, bias, ",".join(names), activation == "silu", backend)
    return out


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, routes: tuple[str, ...]) -> None:
    check_tensors({"x": x, "weight": weight, "bias": bias}, "x")
    for route in routes:
        if route not in ("forward", "backward"):
            raise ValueError(f"unknown route {route!r}; choose from forward, backward")
    if x.dim() != 3:
        raise ValueError(f"x must be (B, L, E), got {tuple(x.shape)}")
    k, channels = len(routes), x.shape[-1]
    if weight.dim() != 3 or tuple(weight.shape[:2]) != (k, channels) or not 1 <= weight.shape[2] <= MAX_TAPS or k == 0:
        wanted = f"({k}, {channels}, W) with W from 1 to {MAX_TAPS}"
        raise ValueError(f"weight must have shape {wanted} for {k} routes, got {tuple(weight.shape)}")
    if bias is not None and tuple(bias.shape) != (k, channels):
        raise ValueError(f"bias must have shape {(k, channels)} for {k} routes, got {tuple(bias.shape)}")
