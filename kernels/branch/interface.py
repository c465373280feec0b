"""The public functions: argument checks and the choice of dtypes in front of the operators."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvision.kernels.branch.op import branch_norm, branch_sum
from ssmvision.kernels.checks import check_tensors

__all__ = ["add_branch", "norm_map"]


def norm_map(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-6,
    channels_last: bool = True,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Layer norm over the channels of a map, with its transposition to tokens, in one pass.

    (x - mean) / sqrt(variance + eps) * weight + bias over the channels of each position (Ba et al., arXiv 1607.06450,
    eq. 4), computed in float32 (float64 where it is). Gradients are deterministic; there is no second derivative.

    Args:
        x: (B, C, *grid) in any floating dtype.
        weight, bias: (C,).
        eps: added to the variance.
        channels_last: the result's layout.
        out_dtype: of the result. None is autocast's dtype where autocast is on for the device, so that a matrix product
            can follow without a cast, and else weight's.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        (B, *grid, C), or (B, C, *grid) without `channels_last`; contiguous.

    Raises:
        ValueError: shapes or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor.
    """
    check_tensors({"x": x, "weight": weight, "bias": bias}, "x")
    if x.dim() < 2:
        raise ValueError(f"x must be (B, C, *grid), got {tuple(x.shape)}")
    for name, t in (("weight", weight), ("bias", bias)):
        if tuple(t.shape) != (x.shape[1],):
            raise ValueError(f"{name} must have shape ({x.shape[1]},), got {tuple(t.shape)}")
    if out_dtype is None:
        device = x.device.type
        autocast = device != "meta" and torch.is_autocast_enabled(device)
        out_dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
    y: Tensor = branch_norm(_positions(x), weight, bias, eps, out_dtype, channels_last, backend)[0]
    grid = x.shape[2:]
    return y.view(x.shape[0], *grid, x.shape[1]) if channels_last else y.view(x.shape)


def add_branch(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor | None = None,
    keep: Tensor | None = None,
    copy_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Add tokens, scaled by channel and image, to a map: x + keep gamma branch, with the transposition in one pass.

    Gradients are deterministic; there is no second derivative, and none in `keep`.

    Args:
        x: (B, C, *grid).
        branch: (B, *grid, C).
        gamma: (C,) layer scale, or None.
        keep: (B,) float32 factors of stochastic depth, or None.
        copy_dtype: of a second copy of the sum, such as a low-precision one for the next block; None for none.
        backend: "auto", or a backend's name, or "-name" to forbid it.

    Returns:
        The sum (B, C, *grid), contiguous, in the dtype to which x, branch and gamma promote; and its copy or None.

    Raises:
        ValueError: shapes or devices do not fit; the message names the argument and what it got.
        TypeError: an argument is not a real floating-point tensor.
    """
    check_tensors({"x": x, "branch": branch, "gamma": gamma, "keep": keep}, "x")
    if x.dim() < 2 or branch.shape != (x.shape[0], *x.shape[2:], x.shape[1]):
        raise ValueError(
            f"branch must be (B, *grid, C) for x (B, C, *grid) = {tuple(x.shape)}, got {tuple(branch.shape)}"
        )
    for name, t, size in (("gamma", gamma, x.shape[1]), ("keep", keep, x.shape[0])):
        if t is not None and tuple(t.shape) != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {tuple(t.shape)}")
    if keep is not None and (keep.dtype != torch.float32 or keep.requires_grad):
        raise ValueError(f"keep must be float32 without gradient, got {keep.dtype}, requires_grad={keep.requires_grad}")
    out_dtype = torch.promote_types(x.dtype, branch.dtype)
    if gamma is not None:
        out_dtype = torch.promote_types(out_dtype, gamma.dtype)
    total, copy = branch_sum(
        _positions(x),
        branch.unsqueeze(1) if branch.dim() == 2 else branch.flatten(1, -2),
        gamma,
        keep,
        out_dtype,
        copy_dtype,
        backend,
    )
    return total.view(x.shape), None if copy_dtype is None else copy.view(x.shape)


def _positions(x: Tensor) -> Tensor:
    """(B, C, *grid) -> (B, C, positions)."""
    return x.unsqueeze(-1) if x.dim() == 2 else x.flatten(2)
