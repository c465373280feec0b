"""2D backend: both axes in one launch, a plane in registers from the read to the write; compiled from csrc/.

A warp owns a feature and walks over images; of planes beyond 64 a block does, a warp a strip of 16 rows.

Backward: one launch for the gradients of input, taps and skip from the input alone, and one that adds the warps' sums.
Nothing is accumulated by atomics, so two runs are bitwise equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, available, kernel
from ssmvision.kernels.cuda.host import processors
from ssmvision.kernels.registry import Request
from ssmvision.kernels.s4nd.args import ConvArgs, ConvRequest, Grads
from ssmvision.kernels.s4nd.cuda_config import (
    LONGEST,
    PlaneConfig,
    backward_config,
    backward_shared_bytes,
    cut,
    forward_config,
    forward_shared_bytes,
    takes_block,
)
from ssmvision.kernels.s4nd.cuda_programs import KIO, Maps, Plane, Taps, defines

__all__ = ["NAME", "backward", "can_run", "forward"]

NAME = "cuda"
SUM_THREADS = 128
MAX_ROW_STRIDE = 1 << 31
OLDEST = (8, 0)  # bfloat16 on tensor cores


def can_run(request: Request) -> str | None:
    """Why the request cannot run here, or None."""
    if not request.device.startswith("cuda"):
        return f"{request.device} is not a CUDA device"
    if isinstance(request, ConvRequest) and request.grid:
        reason = _unfit(request)
        if reason is not None:
            return reason
    return available(request.device) or _unfit_device(request)


def _unfit(request: ConvRequest) -> str | None:
    if len(request.grid) != 2:
        return f"is for planes, this is {len(request.grid)}D"
    if request.rank > 1 or request.channels > 1 or request.dense:
        return "is for one kernel a feature: rank 1, one channel, not dense"
    if request.precision != "bf16" and (request.dtype != torch.bfloat16 or request.precision != "auto"):
        return f"computes in bfloat16, this is {request.dtype} with precision={request.precision!r}"
    if max(request.grid) > LONGEST:
        return f"an axis of {max(request.grid)} is longer than {LONGEST}, so that a strip does not fit into registers"
    return None


def _unfit_device(request: Request) -> str | None:
    properties = torch.cuda.get_device_properties(request.device)
    if (properties.major, properties.minor) < OLDEST:
        return f"needs compute capability {OLDEST[0]}.{OLDEST[1]} or newer"
    if isinstance(request, ConvRequest) and request.grid:
        grid = (request.grid[0], request.grid[1])
        wanted = backward_shared_bytes(grid, backward_config(grid))
        there = int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]
        if wanted > there:
            return f"the backward takes {wanted:,} bytes of shared memory a block, and the GPU has {there:,}"
    return None


@lru_cache(maxsize=256)
def _kernel(
    name: str | None,
    grid: tuple[int, int],
    width: int,
    dense: bool,
    taps: torch.dtype,
    skip: bool,
    need_u: bool | None,
    device: int,
) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    program = ("plane_block_" if takes_block(grid) else "plane_") + ("forward" if need_u is None else "backward")
    return kernel(program, name or program, defines(grid, width, dense, KIO[taps], skip, need_u), device)


class _Inputs(NamedTuple):
    """What both passes read, as the kernels take it."""

    maps: list[Tensor]
    taps: list[Tensor]
    D: Tensor | None
    grid: tuple[int, int]
    width: int
    dense: bool

    @property
    def device(self) -> int:
        """Index of the device."""
        return int(self.maps[0].device.index)

    def variant(self, need_u: bool | None, name: str | None = None) -> Kernel:
        """The compiled forward or, with `need_u`, backward for these inputs; or a program's kernel by name."""
        options = (self.taps[0].dtype, self.D is not None, need_u, self.device)
        return _kernel(name, self.grid, self.width, self.dense, *options)


def _readable(t: Tensor) -> Tensor:
    """In bfloat16, rows of neighbouring elements."""
    t = t.to(torch.bfloat16)
    fits = (t.shape[3] == 1 or t.stride(3) == 1) and t.stride(2) < MAX_ROW_STRIDE
    return t if fits else t.contiguous()


def _copy_width(maps: Sequence[Tensor], dense: bool) -> int:
    """Most bytes that a copy may take: what divides rows, strides and addresses."""
    sizes = [2 * maps[0].shape[3]]
    for t in maps:
        strides = t.stride()[: 2 if dense else 3]
        sizes += [t.data_ptr(), *(2 * stride for stride in strides)]
    return next(width for width in (16, 8, 4, 2) if all(size % width == 0 for size in sizes))


def _inputs(args: ConvArgs, *more: Tensor) -> _Inputs:
    maps = [_readable(t) for t in (args.u, *more)]
    rows, columns = args.grid
    dense = all(rows == 1 or t.stride(2) == columns for t in maps)
    small = [kernel[0, 0] for kernel in args.kernels] + ([] if args.D is None else [args.D[0]])
    shared = torch.bfloat16 if all(t.dtype == torch.bfloat16 for t in small) else torch.float32
    taps = [t.to(shared).contiguous() for t in small]
    D = None if args.D is None else taps.pop()
    return _Inputs(maps, taps, D, (rows, columns), _copy_width(maps, dense), dense)


def _maps(t: Tensor | None) -> Maps:
    return Maps() if t is None else Maps(t.data_ptr(), t.stride(0), t.stride(1), t.stride(2))


def _block(t: _Inputs, args: ConvArgs, out: Tensor | None, config: PlaneConfig) -> Plane:
    """The parameter block; each of the teams on the device takes a chunk of images of one feature."""
    batch, features = args.u.shape[:2]
    walkers = processors(t.device) * config.blocks * config.teams
    chunks, per = cut(batch, features, config.images, walkers)
    y, x = (Taps(taps.data_ptr(), taps.shape[1], center) for taps, center in zip(t.taps, args.centers, strict=True))
    return Plane(
        u=_maps(t.maps[0]),
        dy=_maps(t.maps[1] if len(t.maps) > 1 else None),
        y=y,
        x=x,
        D=None if t.D is None else t.D.data_ptr(),
        out=None if out is None else out.data_ptr(),
        batch=batch,
        H=features,
        chunks=chunks,
        per=per,
    )


def forward(args: ConvArgs) -> Tensor:
    """See `long_conv_nd`; the result has u's dtype."""
    t, config = _inputs(args), forward_config((args.grid[0], args.grid[1]))
    out = torch.empty(args.out_shape, dtype=torch.bfloat16, device=args.u.device)
    block = _block(t, args, out, config)
    launch = t.variant(None).launch
    blocks = -(-block.chunks * block.H // config.teams)
    launch((blocks, 1, 1), (32 * config.warps, 1, 1), forward_shared_bytes(t.grid, config), None, (block,))
    return out.to(args.u.dtype)


def backward(args: ConvArgs, dout: Tensor, need_u: bool, need_kernels: bool) -> Grads:
    """Gradients of the inputs; what lies between the axes is computed again."""
    t, config = _inputs(args, dout.squeeze(1)), backward_config((args.grid[0], args.grid[1]))
    du = torch.empty(args.u.shape, dtype=torch.bfloat16, device=args.u.device) if need_u else None
    block = _block(t, args, du, config)
    sums = 2 * sum(t.grid) - 1
    partial = torch.empty(block.chunks, block.H, sums, device=args.u.device)
    block.partial = partial.data_ptr()
    shared = backward_shared_bytes(t.grid, config)
    launch = t.variant(need_u).launch
    launch((block.chunks * block.H, 1, 1), (32 * config.warps, 1, 1), shared, None, (block,))
    if not need_kernels and args.D is None:
        return Grads(du, None, None)
    d_taps = [torch.empty(taps.shape, device=args.u.device) for taps in t.taps]
    d_skip = None if args.D is None else torch.empty(args.D.shape, device=args.u.device)
    entries = block.H * (sum(d.shape[1] for d in d_taps) + 1)
    summed = (block, *d_taps, d_skip)
    t.variant(need_u, "plane_sum").launch((-(-entries // SUM_THREADS), 1, 1), (SUM_THREADS, 1, 1), 0, None, summed)
    d_kernels = tuple(d.expand(kernel.shape) for d, kernel in zip(d_taps, args.kernels, strict=True))
    return Grads(du, d_kernels if need_kernels else None, d_skip)
