"""Triton backend of the instance norm: two passes over the map forward and two backward, none of which waits for one.

Sums are added up in an order that depends on shapes only, without atomics: two runs are bitwise equal. Importing this
module does not import triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.instance_norm.config import norm_config
from ssmvision.kernels.registry import Request
from ssmvision.kernels.selective_scan import triton as scan_triton

__all__ = ["backward", "can_run", "forward"]


def can_run(request: Request) -> str | None:
    """Why the request cannot run on Triton, or None."""
    return scan_triton.can_run(request)


def _kernel(name: str) -> Any:
    """A kernel by its name; imports triton at the first call."""
    return getattr(import_module("ssmvision.kernels.instance_norm.triton_kernels"), name)


def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.forward`."""
    batch, channels, voxels = x.shape
    cut, x = norm_config(batch * channels, voxels), x.contiguous()
    grid = (batch * channels, cut.splits)
    blocks = {"SPLITS": cut.splits, "BLOCK": cut.block, "num_warps": cut.warps}
    part = torch.empty(*grid, 2, device=x.device)
    y, stats = torch.empty_like(x), torch.empty(batch, channels, 2, device=x.device)
    _kernel("moments")[grid](x, part, voxels, cut.chunk, **blocks)
    tensors = (x, weight.contiguous(), bias.contiguous(), part, y, stats)
    _kernel("normalise")[grid](*tensors, channels, voxels, cut.chunk, eps, **blocks)
    mean, rstd = stats.unbind(2)
    return y, mean.contiguous(), rstd.contiguous()


def backward(x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.backward`."""
    batch, channels, voxels = x.shape
    cut, x, dy = norm_config(batch * channels, voxels), x.contiguous(), dy.contiguous()
    grid = (batch * channels, cut.splits)
    blocks = {"SPLITS": cut.splits, "BLOCK": cut.block, "num_warps": cut.warps}
    part, stats = torch.empty(*grid, 2, device=x.device), torch.stack((mean, rstd), 2)
    dx, sums = torch.empty_like(x), torch.empty(batch, channels, 2, device=x.device)
    _kernel("gradient_sums")[grid](x, stats, dy, part, voxels, cut.chunk, **blocks)
    tensors = (x, weight.contiguous(), stats, dy, part, dx, sums)
    _kernel("gradient")[grid](*tensors, channels, voxels, cut.chunk, **blocks)
    dweight, dbias = sums.sum(0).to(weight.dtype).unbind(1)
    return dx, dweight.contiguous(), dbias.contiguous()
