"""CUDA backend of the channel means: two launches forward, one backward, compiled at run time from csrc/.

Sums are taken in a partition that depends on shapes and device only, in a fixed order: two runs are bitwise equal.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.channel_means import reference
from ssmvision.kernels.channel_means.config import MAX_PACKS, WARPS, parts, rows_at_once
from ssmvision.kernels.channel_means.cuda_programs import IO, Means
from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.cuda.host import can_run, processors

__all__ = ["backward", "can_run", "forward"]

LANES, SUM_COLUMNS, SUM_ROWS = 32, 32, 8
MAX_BATCH = 65535  # blocks along y


@lru_cache(maxsize=256)
def _kernel(name: str, dtype: torch.dtype, wide: int, packs: int, device: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    defines = {"IO": IO[dtype], "V": wide, "PACKS": packs, "ROWS": rows_at_once(packs)}
    return kernel("channel_means", name, defines, device)


def _packing(x: Tensor) -> tuple[int, int]:
    """Channels per access and accesses per lane."""
    channels = x.shape[2]
    wide = next(n for n in (4, 2, 1) if channels % n == 0 and x.data_ptr() % (n * x.element_size()) == 0)
    return wide, -(-channels // (LANES * wide))


def forward(x: Tensor, eps: float) -> Tensor:
    """Take the means; takes and returns as `reference.forward`."""
    x = x.contiguous()
    batch, rows, channels = x.shape
    wide, packs = _packing(x)
    if x.numel() == 0 or packs > MAX_PACKS or batch > MAX_BATCH:
        return reference.forward(x, eps)
    device = x.device.index
    count = parts(batch, rows, rows_at_once(packs), processors(device))
    partial = torch.empty(batch, count, 2, channels, device=x.device)
    out = torch.empty(batch, 2, channels, device=x.device)
    block = Means(
        x=x.data_ptr(), partial=partial.data_ptr(), out=out.data_ptr(), L=rows, C=channels, parts=count, eps=eps
    )
    _kernel("means_partial", x.dtype, wide, packs, device).launch(
        (count, batch, 1), (LANES * WARPS, 1, 1), 0, None, (block,)
    )
    _kernel("means_sum", x.dtype, wide, packs, device).launch(
        (-(-2 * channels // SUM_COLUMNS), batch, 1), (SUM_COLUMNS, SUM_ROWS, 1), 0, None, (block,)
    )
    return out


def backward(x: Tensor, eps: float, dmeans: Tensor) -> Tensor:
    """Gradient; takes and returns as `reference.backward`."""
    x, dmeans = x.contiguous(), dmeans.contiguous()
    batch, rows, channels = x.shape
    wide, packs = _packing(x)
    if x.numel() == 0 or packs > MAX_PACKS or batch > MAX_BATCH or dmeans.data_ptr() % (4 * wide):
        return reference.backward(x, eps, dmeans)
    dx = torch.empty_like(x)
    block = Means(x=x.data_ptr(), gradient=dmeans.data_ptr(), dx=dx.data_ptr(), L=rows, C=channels, eps=eps)
    _kernel("means_backward", x.dtype, wide, packs, x.device.index).launch(
        (-(-rows // WARPS), batch, 1), (LANES * WARPS, 1, 1), 0, None, (block,)
    )
    return dx
