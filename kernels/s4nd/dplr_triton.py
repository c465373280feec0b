"""Triton backend of S4's kernels: one launch forward, one and a few sums backward, for any number of systems.

Every kernel's part of the gradients of shared parameters is written and then summed, without atomics: two runs are
bitwise equal. Importing this module does not import triton.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ssmvision.kernels.registry import Request
from ssmvision.kernels.selective_scan import triton as scan_triton

__all__ = ["MAX_LENGTH", "MAX_MODES", "backward", "can_run", "forward"]

# Modes lie side by side in a program; every program walks all nodes, so time grows with the length's square.
MAX_MODES, MAX_LENGTH = 256, 4096
WARPS = 4


def can_run(request: Request) -> str | None:
    """Why the request cannot run on Triton, or None."""
    if request.dtype != torch.float32:
        return f"computes in float32, so {request.dtype} is left to others"
    return scan_triton.can_run(request)


def _kernel(name: str) -> Any:
    """A kernel by its name; imports triton at the first call."""
    return getattr(import_module("ssmvision.kernels.s4nd.dplr_kernels"), name)


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def _blocks(steps: int, modes: int, nodes: int, length: int) -> dict[str, int]:
    """Tiles: of nodes x modes, which the sums over either run in, and of nodes x taps."""
    wide = {"STEPS": steps, "BLOCK_N": _power(modes), "num_warps": WARPS}
    return wide | {"BLOCK_K": min(max(_power(nodes // 2 + 1), 4), 16), "BLOCK_L": min(max(_power(length), 16), 64)}


def forward(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, P: Tensor, nodes: int, length: int
) -> Tensor:
    """As `dplr_op.dplr_taps`."""
    batch, channels, features, modes, _ = C.shape
    out = torch.empty(batch, channels, features, length, device=C.device)
    blocks = _blocks(dt.shape[-1], modes, nodes, length)
    systems = tuple(t.contiguous() for t in (dt, A_real, A_imag, B, C, P))
    sizes = (features, A_real.shape[1], channels, modes, nodes, length)
    grid = (batch * channels * features, -(-length // blocks["BLOCK_L"]))
    _kernel("dplr_forward")[grid](*systems, out, *sizes, **blocks)
    return out


def backward(
    dt: Tensor, A_real: Tensor, A_imag: Tensor, B: Tensor, C: Tensor, P: Tensor, nodes: int, length: int, dout: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of the six tensors."""
    batch, channels, features, modes, _ = C.shape
    shared = A_real.shape[1]
    d_C = torch.empty(C.shape, device=C.device)
    parts = torch.empty(batch, channels, features, 7, modes, device=C.device)
    systems = tuple(t.contiguous() for t in (dt, A_real, A_imag, B, C, P))
    sizes = (features, shared, channels, modes, nodes, length)
    grid = (batch * channels * features,)
    blocks = _blocks(dt.shape[-1], modes, nodes, length)
    _kernel("dplr_backward")[grid](*systems, dout.contiguous(), d_C, parts, *sizes, **blocks)
    # Feature h has the system h mod S.
    sums = parts.view(batch, -1, shared, 7, modes).sum(1)
    d_B, d_P = sums[:, :, 2:4].transpose(-1, -2), sums[:, :, 4:6].transpose(-1, -2)
    d_dt = parts[..., 6, :].sum(1)
    if dt.shape[-1] == 1:
        d_dt = d_dt.sum(-1, keepdim=True)
    return d_dt, sums[:, :, 0], sums[:, :, 1], d_B, d_C, d_P
