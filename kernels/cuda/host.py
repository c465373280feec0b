"""What the host sides of the CUDA backends share: the table of dtypes, and what a request, device and tensors allow."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.cuda.availability import available
from ssmvision.kernels.registry import Request

__all__ = ["IO", "aligned", "can_run", "processors"]

# Values of the macros IO, WIO and the like, see csrc/types.cuh.
IO = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def can_run(request: Request) -> str | None:
    """Why a backend that reads the dtypes of `IO` and computes in float32 cannot run the request, or None."""
    if not request.device.startswith("cuda"):
        return f"{request.device} is not a CUDA device"
    if request.dtype not in IO:
        return f"computes in float32, so {request.dtype} is left to others"
    return available(request.device)


@lru_cache(maxsize=64)
def processors(device: int) -> int:
    """Multiprocessors of a device."""
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def aligned(*tensors: Tensor | None) -> int:
    """How many neighbours along the last axis, whose stride is 1, may be accessed at once: 4, 2 or 1."""
    present = [t for t in tensors if t is not None]
    return next((count for count in (4, 2) if all(_starts_at(t, count) for t in present)), 1)


def _starts_at(t: Tensor, count: int) -> bool:
    """Whether every row starts at a multiple of so many elements, and is as long as one."""
    rows = (stride for size, stride in zip(t.shape[:-1], t.stride()[:-1], strict=True) if size > 1)
    whole = t.shape[-1] % count == 0 and t.data_ptr() % (count * t.element_size()) == 0
    return whole and not any(stride % count for stride in rows)
