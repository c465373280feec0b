"""Triton backend of sums of exponentials: nothing of the size modes x taps is ever stored, and no atomics are used.

Importing this module does not import triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.s4nd import dplr_triton

__all__ = ["MAX_LENGTH", "MAX_MODES", "backward", "can_run", "forward"]

MAX_MODES, MAX_LENGTH = dplr_triton.MAX_MODES, 1 << 20
ELEMENTS, WARPS = 2048, 4
can_run = dplr_triton.can_run


def _kernel(name: str) -> Any:
    """A kernel by its name; imports triton at the first call."""
    return getattr(import_module("ssmvision.kernels.s4nd.modes_kernels"), name)


def _blocks(modes: int, length: int) -> dict[str, int]:
    wide = 1 << max(modes - 1, 0).bit_length()
    taps = min(max(ELEMENTS // wide, 16), 1 << max(length - 1, 15).bit_length())
    return {"BLOCK_N": wide, "BLOCK_L": taps, "num_warps": WARPS}


def forward(log_re: Tensor, log_im: Tensor, weight_re: Tensor, weight_im: Tensor, length: int) -> Tensor:
    """As `modes_op.modes_taps`."""
    batch, channels, features, modes = weight_re.shape
    out = torch.empty(batch, channels, features, length, device=weight_re.device)
    blocks = _blocks(modes, length)
    given = tuple(t.contiguous() for t in (log_re, log_im, weight_re, weight_im))
    grid = (batch * channels * features, -(-length // blocks["BLOCK_L"]))
    _kernel("modes_forward")[grid](*given, out, features, channels, modes, length, **blocks)
    return out


def backward(
    log_re: Tensor, log_im: Tensor, weight_re: Tensor, weight_im: Tensor, length: int, dout: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the four tensors."""
    batch, channels, features, modes = weight_re.shape
    found = [torch.empty(weight_re.shape, device=dout.device) for _ in range(2)]
    parts = torch.empty(batch, channels, features, 2, modes, device=dout.device)
    given = tuple(t.contiguous() for t in (log_re, log_im, weight_re, weight_im, dout))
    grid, sizes = (batch * channels * features,), (features, channels, modes, length)
    _kernel("modes_backward")[grid](*given, *found, parts, *sizes, **_blocks(modes, length))
    sums = parts[:, 0] if channels == 1 else parts.sum(1)
    return sums[:, :, 0], sums[:, :, 1], *found
