"""The public function: argument checks and the choice of dtypes in front of the operator."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvision.kernels.add_norm.args import keeps_hidden
from ssmvision.kernels.add_norm.op import add_norm
from ssmvision.kernels.checks import check_tensors

__all__ = ["add_layer_norm", "add_rms_norm"]


def add_rms_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalise the sum over its last axis, in one pass.

    residual' = residual + hidden; normed = residual' / sqrt(mean(residual'^2) + eps) * weight
    (Zhang and Sennrich, arXiv 1910.07467, eq. 4). The sum is rounded to `residual_dtype` and then normalised in
    float32 (float64 where it is). Gradients are deterministic; there is no second derivative.

    Args:
        hidden: (..., C) in any floating dtype.
        residual: (..., C), or None where the stream starts with hidden.
        weight: (C,).
        eps: added to the mean square.
        out_dtype: of the normed tensor. None is autocast's dtype where autocast is on for the device, so that a matrix
            product can follow without a cast, and else weight's.
        residual_dtype: of the new residual. None is the widest of float32, hidden's and residual's.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        normed (..., C) and the new residual (..., C), which is `hidden` itself where that changes nothing.

    Raises:
        ValueError: shapes or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor.
    """
    _check(hidden=hidden, residual=residual, weight=weight)
    if residual_dtype is None:
        residual_dtype = torch.promote_types(hidden.dtype, torch.float32 if residual is None else residual.dtype)
        residual_dtype = torch.promote_types(residual_dtype, torch.float32)
    out_dtype = out_dtype or _default_dtype(hidden, weight)
    normed, total, _ = add_norm(hidden, residual, weight, None, False, eps, out_dtype, residual_dtype, backend)
    return normed, hidden if keeps_hidden(hidden, residual, residual_dtype) else total


def add_layer_norm(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and layer-normalise the sum over its last axis, in one pass.

    residual' = residual + hidden; normed = (residual' - mean) / sqrt(variance + eps) * weight + bias
    (Ba et al., arXiv 1607.06450, eq. 4). The sum is rounded to `residual_dtype` and then normalised in float32
    (float64 where it is), the variance from the differences to the mean. Gradients are deterministic; there is no
    second derivative.

    Args:
        hidden: (..., C) in any floating dtype.
        residual: (..., C), or None where the stream starts with hidden.
        weight: (C,).
        bias: (C,) in weight's dtype, or None.
        eps: added to the variance.
        out_dtype: of the normed tensor. None is autocast's dtype where autocast is on for the device, so that a matrix
            product can follow without a cast, and else weight's.
        residual_dtype: of the new residual. None is the wider of hidden's and residual's.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        normed (..., C) and the new residual (..., C), which is `hidden` itself where that changes nothing.

    Raises:
        ValueError: shapes or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor, or bias is not in weight's dtype.
    """
    _check(hidden=hidden, residual=residual, weight=weight, bias=bias)
    if bias is not None and bias.dtype != weight.dtype:
        raise TypeError(f"bias must have weight's dtype {weight.dtype}, got {bias.dtype}")
    if residual_dtype is None:
        residual_dtype = hidden.dtype if residual is None else torch.promote_types(hidden.dtype, residual.dtype)
    out_dtype = out_dtype or _default_dtype(hidden, weight)
    normed, total, _ = add_norm(hidden, residual, weight, bias, True, eps, out_dtype, residual_dtype, backend)
    return normed, hidden if keeps_hidden(hidden, residual, residual_dtype) else total


def _default_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _check(hidden: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> None:
    check_tensors({"hidden": hidden, "residual": residual, "weight": weight, "bias": bias}, "hidden")
    if hidden.dim() == 0:
        raise ValueError("hidden must be (..., C), got a tensor without axes")
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"residual must have hidden's shape {tuple(hidden.shape)}, got {tuple(residual.shape)}")
    for name, t in {"weight": weight, "bias": bias}.items():
        if t is not None and tuple(t.shape) != (hidden.shape[-1],):
            raise ValueError(f"{name} must have shape ({hidden.shape[-1]},), got {tuple(t.shape)}")
