"""The public function: argument checks and the choice of dtypes in front of the operator."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvision.kernels.add_norm.op import add_norm
from ssmvision.kernels.add_norm.reference import keeps_hidden

__all__ = ["add_rms_norm"]


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
    _check(hidden, residual, weight)
    if out_dtype is None:
        autocast = torch.is_autocast_enabled(hidden.device.type)
        out_dtype = torch.get_autocast_dtype(hidden.device.type) if autocast else weight.dtype
    if residual_dtype is None:
        residual_dtype = torch.promote_types(hidden.dtype, torch.float32 if residual is None else residual.dtype)
        residual_dtype = torch.promote_types(residual_dtype, torch.float32)
    normed, total, _ = add_norm(hidden, residual, weight, eps, out_dtype, residual_dtype, backend)
    return normed, hidden if keeps_hidden(hidden, residual, residual_dtype) else total


def _check(hidden: Tensor, residual: Tensor | None, weight: Tensor) -> None:
    for name, t in {"hidden": hidden, "residual": residual, "weight": weight}.items():
        if t is not None and not t.is_floating_point():
            raise TypeError(f"{name} must be a real floating-point tensor, got {t.dtype}")
        if t is not None and t.device != hidden.device:
            raise ValueError(f"{name} is on {t.device} but hidden is on {hidden.device}; move it there")
    if hidden.dim() == 0:
        raise ValueError("hidden must be (..., C), got a tensor without axes")
    if residual is not None and residual.shape != hidden.shape:
        raise ValueError(f"residual must have hidden's shape {tuple(hidden.shape)}, got {tuple(residual.shape)}")
    if tuple(weight.shape) != (hidden.shape[-1],):
        raise ValueError(f"weight must have shape ({hidden.shape[-1]},), got {tuple(weight.shape)}")
