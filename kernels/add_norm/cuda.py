"""CUDA backend of the fused norms: one launch forward, two backward, compiled at run time from csrc/.

The parameters' gradients are summed in a partition that depends on shapes and device only, in a fixed order, without
atomics: two runs are bitwise equal.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.add_norm import reference
from ssmvision.kernels.add_norm.args import Grads, NormArgs, NormGrads, keeps_hidden
from ssmvision.kernels.add_norm.config import RowConfig, backward_blocks, row_config
from ssmvision.kernels.add_norm.cuda_programs import IO, Norm
from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.cuda.host import aligned, can_run, processors

__all__ = ["backward", "can_run", "forward"]

SUM_THREADS, SUM_COLUMNS = 1024, 32


# Of hidden, the residual stream, the weight and the normed tensor.
Dtypes = tuple[torch.dtype, torch.dtype, torch.dtype, torch.dtype]


@lru_cache(maxsize=256)
def _kernel(name: str, dtypes: Dtypes, config: RowConfig, centered: bool, device: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    codes = dict(zip(("HIDDEN", "RESIDUAL", "WEIGHT", "OUT"), (IO[dtype] for dtype in dtypes), strict=True))
    shape = {"V": config.channels, "PACKS": config.packs, "LANES": config.lanes, "ROWS": config.rows}
    program = "norm_forward" if name == "norm_forward" else "norm_backward"
    return kernel(program, name, {**codes, **shape, "CENTERED": int(centered)}, device)


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _rows(stats: Tensor, centered: bool) -> tuple[int, int | None]:
    """Addresses of the inverse roots and, centered, of the means."""
    return (stats[0].data_ptr(), stats[1].data_ptr()) if centered else (stats.data_ptr(), None)


def forward(args: NormArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Add and normalise; takes and returns as `reference.forward`."""
    if args.hidden.numel() == 0 or args.out_dtype not in IO or args.weight.dtype not in IO:
        return reference.forward(args)
    kept = keeps_hidden(args.hidden, args.residual, args.residual_dtype)
    hidden, weight = args.hidden.contiguous(), args.weight.contiguous()
    residual = None if args.residual is None else args.residual.to(args.residual_dtype).contiguous()
    bias = None if args.bias is None else args.bias.contiguous()
    channels = hidden.shape[-1]
    rows = hidden.numel() // channels
    normed = torch.empty(hidden.shape, dtype=args.out_dtype, device=hidden.device)
    total = torch.empty(0 if kept else hidden.shape, dtype=args.residual_dtype, device=hidden.device)
    stats = torch.empty((2, rows) if args.centered else rows, device=hidden.device)
    config = row_config(channels, aligned(hidden, residual, weight, bias))
    rstd, mean = _rows(stats, args.centered)
    block = Norm(
        hidden=hidden.data_ptr(),
        residual=_address(residual),
        weight=weight.data_ptr(),
        bias=_address(bias),
        normed=normed.data_ptr(),
        total=None if kept else total.data_ptr(),
        rstd=rstd,
        mean=mean,
        rows=rows,
        C=channels,
        eps=args.eps,
    )
    dtypes = (hidden.dtype, args.residual_dtype, weight.dtype, args.out_dtype)
    compiled = _kernel("norm_forward", dtypes, config, args.centered, hidden.device.index)
    compiled.launch((-(-rows // config.rows), 1, 1), (config.threads, 1, 1), 0, None, (block,))
    return normed, total, stats


def backward(args: NormGrads) -> Grads:
    """Gradients; takes and returns as `reference.backward`."""
    if args.total.numel() == 0 or args.d_normed.dtype not in IO or args.weight.dtype not in IO:
        return reference.backward(args)
    total, weight, d_normed = args.total.contiguous(), args.weight.contiguous(), args.d_normed.contiguous()
    d_total = None if args.d_total is None else args.d_total.to(total.dtype).contiguous()
    device, channels = total.device.index, total.shape[-1]
    rows = total.numel() // channels
    d_hidden = torch.empty(total.shape, dtype=args.hidden_dtype, device=total.device)
    d_residual = torch.empty_like(total) if args.residual_apart else None
    d_weight = torch.empty_like(weight)
    d_bias = torch.empty_like(weight) if args.has_bias else None
    config = row_config(channels, aligned(total, weight, d_normed, d_total), backward=True)
    blocks = backward_blocks(rows, config, processors(device))
    columns = channels * (2 if args.has_bias else 1)
    partial = torch.empty(blocks, columns, device=total.device)
    rstd, mean = _rows(args.stats, args.centered)
    block = Norm(
        residual=_address(d_total),
        weight=weight.data_ptr(),
        bias=_address(d_bias),
        normed=d_normed.data_ptr(),
        total=total.data_ptr(),
        rstd=rstd,
        mean=mean,
        d_hidden=d_hidden.data_ptr(),
        d_residual=_address(d_residual),
        partial=partial.data_ptr(),
        rows=rows,
        C=channels,
    )
    dtypes = (args.hidden_dtype, total.dtype, weight.dtype, d_normed.dtype)
    launch = _kernel("norm_backward", dtypes, config, args.centered, device).launch
    launch((blocks, 1, 1), (config.threads, 1, 1), 0, None, (block,))
    grid = (-(-columns // SUM_COLUMNS), 1, 1)
    sums = (partial, d_weight, d_bias, blocks, columns, channels)
    _kernel("norm_sum", dtypes, config, args.centered, device).launch(grid, (SUM_THREADS, 1, 1), 0, None, sums)
    return Grads(d_hidden, d_residual, d_weight, d_bias)
