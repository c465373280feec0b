"""CUDA backend of the channel scale: one launch, compiled at run time from csrc/. The gradients are the reference's."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.channel_scale import reference
from ssmvision.kernels.channel_scale.cuda_programs import IO, Scale
from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.cuda.host import can_run

__all__ = ["can_run", "forward"]

THREADS, ACCESS_BYTES = 256, 16


@lru_cache(maxsize=256)
def _kernel(dtype: torch.dtype, weight_dtype: torch.dtype, wide: int, maps: int, device: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    defines = {"IO": IO[dtype], "WIO": IO[weight_dtype], "V": wide, "MAPS": maps}
    return kernel("channel_scale", "channel_scale", defines, device)


def _at_once(channels: int, tensors: list[Tensor]) -> int:
    """Channels per access: as many as 16 bytes of a map hold, where channels and addresses allow it."""
    count = ACCESS_BYTES // tensors[0].element_size()
    while count > 1 and (
        channels % count or any(t.data_ptr() % min(count * t.element_size(), ACCESS_BYTES) for t in tensors)
    ):
        count //= 2
    return count


def forward(first: Tensor, second: Tensor | None, weights: Tensor) -> Tensor:
    """Weigh and add; takes and returns as `reference.forward`."""
    if first.numel() == 0 or weights.dtype not in IO:
        return reference.forward(first, second, weights)
    first, weights = first.contiguous(), weights.contiguous()
    second = None if second is None else second.contiguous()
    _, positions, channels = first.shape
    out = torch.empty_like(first)
    wide = _at_once(channels, [t for t in (first, second, out, weights) if t is not None])
    packs = first.numel() // wide
    block = Scale(
        first=first.data_ptr(),
        second=None if second is None else second.data_ptr(),
        weights=weights.data_ptr(),
        out=out.data_ptr(),
        packs=packs,
        L=positions,
        C=channels,
    )
    compiled = _kernel(first.dtype, weights.dtype, wide, 1 if second is None else 2, first.device.index)
    compiled.launch((-(-packs // THREADS), 1, 1), (THREADS, 1, 1), 0, None, (block,))
    return out
