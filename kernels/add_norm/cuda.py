"""CUDA backend of the fused norm: one launch forward, two backward, compiled at run time from csrc/.

The weight's gradient is summed in a partition that depends on shapes and device only, in a fixed order, without
atomics: two runs are bitwise equal.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.add_norm import reference
from ssmvision.kernels.add_norm.config import RowConfig, backward_blocks, row_config
from ssmvision.kernels.add_norm.cuda_programs import IO, Norm
from ssmvision.kernels.cuda import Kernel, available, kernel
from ssmvision.kernels.registry import Request

__all__ = ["backward", "can_run", "forward"]

SUM_THREADS, SUM_COLUMNS = 1024, 32


def can_run(request: Request) -> str | None:
    """Why the request cannot run on CUDA, or None."""
    if not request.device.startswith("cuda"):
        return f"{request.device} is not a CUDA device"
    if request.dtype not in IO:
        return f"computes in float32, so {request.dtype} is left to others"
    return available(request.device)


# Of hidden, the residual stream, the weight and the normed tensor.
Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype]


@lru_cache(maxsize=256)
def _kernel(name: str, dtypes: Dtypes, config: RowConfig, device: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    codes = dict(zip(("HIDDEN", "RESIDUAL", "WEIGHT", "OUT"), (IO[dtype] for dtype in dtypes), strict=True))
    shape = {"V": config.channels, "PACKS": config.packs, "WARPS": config.warps, "ROWS": config.rows}
    program = "norm_forward" if name == "norm_forward" else "norm_backward"
    return kernel(program, name, {**codes, **shape}, device)


@lru_cache(maxsize=16)
def _processors(device: int) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def _aligned(*tensors: Tensor | None) -> int:
    """How many channels may be read at once: 4, 2 or 1."""
    present = [t for t in tensors if t is not None]
    for count in (4, 2):
        if all(t.shape[-1] % count == 0 and t.data_ptr() % (count * t.element_size()) == 0 for t in present):
            return count
    return 1


def forward(
    hidden: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    out_dtype: torch.dtype,
    residual_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add and normalise; takes and returns as `reference.forward`."""
    if hidden.numel() == 0 or out_dtype not in IO or weight.dtype not in IO:
        return reference.forward(hidden, residual, weight, eps, out_dtype, residual_dtype)
    kept = reference.keeps_hidden(hidden, residual, residual_dtype)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    residual = None if residual is None else residual.to(residual_dtype).contiguous()
    channels = hidden.shape[-1]
    rows = hidden.numel() // channels
    normed = torch.empty(hidden.shape, dtype=out_dtype, device=hidden.device)
    total = torch.empty(0 if kept else hidden.shape, dtype=residual_dtype, device=hidden.device)
    rstd = torch.empty(rows, device=hidden.device)
    config = row_config(channels, _aligned(hidden, residual, weight))
    block = Norm(
        hidden=hidden.data_ptr(),
        residual=None if residual is None else residual.data_ptr(),
        weight=weight.data_ptr(),
        normed=normed.data_ptr(),
        total=None if kept else total.data_ptr(),
        rstd=rstd.data_ptr(),
        rows=rows,
        C=channels,
        eps=eps,
    )
    dtypes = (hidden.dtype, residual_dtype, weight.dtype, out_dtype)
    compiled = _kernel("norm_forward", dtypes, config, hidden.device.index)
    compiled.launch((-(-rows // config.rows), 1, 1), (config.threads, 1, 1), 0, None, (block,))
    return normed, total, rstd


def backward(
    total: Tensor,
    weight: Tensor,
    rstd: Tensor,
    d_normed: Tensor,
    d_total: Tensor | None,
    hidden_dtype: torch.dtype,
    has_residual: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients; takes and returns as `reference.backward`."""
    if total.numel() == 0 or d_normed.dtype not in IO or weight.dtype not in IO:
        return reference.backward(total, weight, rstd, d_normed, d_total, hidden_dtype, has_residual)
    device, channels = total.device.index, total.shape[-1]
    total, weight, d_normed = total.contiguous(), weight.contiguous(), d_normed.contiguous()
    d_total = None if d_total is None else d_total.to(total.dtype).contiguous()
    rows = total.numel() // channels
    d_hidden = torch.empty(total.shape, dtype=hidden_dtype, device=total.device)
    d_residual = torch.empty_like(total) if has_residual and hidden_dtype != total.dtype else None
    d_weight = torch.empty_like(weight)
    config = row_config(channels, _aligned(total, weight, d_normed, d_total), backward=True)
    blocks = backward_blocks(rows, config, _processors(device))
    partial = torch.empty(blocks, channels, device=total.device)
    block = Norm(
        residual=None if d_total is None else d_total.data_ptr(),
        weight=weight.data_ptr(),
        normed=d_normed.data_ptr(),
        total=total.data_ptr(),
        rstd=rstd.data_ptr(),
        d_hidden=d_hidden.data_ptr(),
        d_residual=None if d_residual is None else d_residual.data_ptr(),
        partial=partial.data_ptr(),
        rows=rows,
        C=channels,
    )
    dtypes = (hidden_dtype, total.dtype, weight.dtype, d_normed.dtype)
    _kernel("norm_backward", dtypes, config, device).launch((blocks, 1, 1), (config.threads, 1, 1), 0, None, (block,))
    grid = (-(-channels // SUM_COLUMNS), 1, 1)
    args = (partial, d_weight, blocks, channels)
    _kernel("norm_sum", dtypes, config, device).launch(grid, (SUM_THREADS, 1, 1), 0, None, args)
    return d_hidden, d_residual, d_weight
