"""Triton backend of the branch operators: one pass over the maps each, which also changes their layout.

The gradients of weights are summed in parts that depend on shapes only, in a fixed order, without atomics: two runs are
bitwise equal. Importing this module does not import triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.branch.config import MAX_CHANNELS, norm_backward_tile, norm_tile, sum_tile
from ssmvision.kernels.registry import Request
from ssmvision.kernels.selective_scan import triton as scan_triton

__all__ = ["can_run", "norm_backward", "norm_forward", "sum_backward", "sum_forward"]


def can_run(request: Request) -> str | None:
    """Why the request cannot run on Triton, or None."""
    return scan_triton.can_run(request)


def _kernel(name: str) -> Any:
    """A kernel by its name; imports triton at the first call."""
    return getattr(import_module("ssmvision.kernels.branch.triton_kernels"), name)


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


def fits(channels: int) -> bool:
    """Whether a tile holds all channels."""
    return channels <= MAX_CHANNELS


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, out_dtype: torch.dtype, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.norm_forward`."""
    batch, channels, positions = x.shape
    tile = norm_tile(channels)
    tiles = _tiles(positions, tile.positions)
    shape = (batch, positions, channels) if last else (batch, channels, positions)
    y = torch.empty(shape, dtype=out_dtype, device=x.device)
    mean, rstd = (torch.empty(batch, positions, device=x.device) for _ in range(2))
    sizes = (channels, positions, tiles, eps)
    blocks = {"BLOCK_C": tile.channels, "BLOCK_P": tile.positions, "num_warps": tile.warps}
    tensors = (x.contiguous(), weight.contiguous(), bias.contiguous(), y, mean, rstd)
    _kernel("norm_forward")[(batch * tiles,)](*tensors, *sizes, LAST=last, **blocks)
    return y, mean, rstd


def norm_backward(
    x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dy: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As `reference.norm_backward`."""
    batch, channels, positions = x.shape
    tile = norm_backward_tile(channels)
    tiles = _tiles(positions, tile.positions)
    programs = min(tile.parts, batch * tiles)
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = torch.empty(programs, 2, channels, device=x.device)
    tensors = (x.contiguous(), weight.contiguous(), mean, rstd, dy.contiguous(), dx, parts)
    blocks = {"BLOCK_C": tile.channels, "BLOCK_P": tile.positions, "num_warps": tile.warps}
    _kernel("norm_backward")[(programs,)](*tensors, channels, positions, tiles, batch * tiles, LAST=last, **blocks)
    d_weight, d_bias = parts.sum(0).to(weight.dtype)
    return dx, d_weight, d_bias


def sum_forward(
    x: Tensor,
    branch: Tensor,
    gamma: Tensor | None,
    keep: Tensor | None,
    out_dtype: torch.dtype,
    copy_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """As `reference.sum_forward`."""
    batch, channels, positions = x.shape
    tile = sum_tile()
    tiles_p = _tiles(positions, tile.positions)
    tiles = tiles_p * _tiles(channels, tile.channels)
    total = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    copy = None if copy_dtype is None else torch.empty(x.shape, dtype=copy_dtype, device=x.device)
    tensors = (x.contiguous(), branch.contiguous(), gamma, keep, total, copy)
    blocks = {"BLOCK_C": tile.channels, "BLOCK_P": tile.positions, "num_warps": tile.warps}
    _kernel("sum_forward")[(batch * tiles,)](*tensors, channels, positions, tiles_p, tiles, **blocks)
    return total, x.new_empty(0) if copy is None else copy


def sum_backward(
    branch: Tensor, gamma: Tensor | None, keep: Tensor | None, d_total: Tensor, d_copy: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `reference.sum_backward`."""
    batch, positions, channels = branch.shape
    tile = sum_tile()
    tiles_p, tiles_c = _tiles(positions, tile.positions), _tiles(channels, tile.channels)
    programs = max(min(tile.parts // tiles_c, batch * tiles_p), 1)
    d_total = d_total.contiguous()
    d_x = d_total if d_copy is None else torch.empty_like(d_total)
    d_branch = torch.empty(branch.shape, dtype=branch.dtype, device=branch.device)
    parts = None if gamma is None else torch.empty(programs, channels, device=branch.device)
    incoming = (d_total, None if d_copy is None else d_copy.contiguous(), None if d_copy is None else d_x)
    tensors = (branch.contiguous(), gamma, keep, *incoming, d_branch, parts)
    blocks = {"BLOCK_C": tile.channels, "BLOCK_P": tile.positions, "num_warps": tile.warps}
    _kernel("sum_backward")[(programs, tiles_c)](*tensors, channels, positions, tiles_p, batch * tiles_p, **blocks)
    return d_x, d_branch, None if gamma is None or parts is None else parts.sum(0).to(gamma.dtype)
