"""CUDA backend of the projected scan: a block holds the merged map of 16 channels of an image in shared memory.

So routes need no partial maps in device memory, and step sizes, made by the tensor cores from their low rank, are never
stored. Channel tiles leave partial sums of the projections' gradients, which are added in order: two runs are bitwise
equal.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, available, kernel
from ssmvision.kernels.cuda.host import processors
from ssmvision.kernels.projected_scan import composition
from ssmvision.kernels.projected_scan.args import Grads, ProjectedArgs, ProjectedRequest
from ssmvision.kernels.projected_scan.config import (
    TILE,
    Pass,
    Size,
    backward_pass,
    forward_pass,
    images_per_block,
    shared_bytes,
)
from ssmvision.kernels.projected_scan.cuda_programs import (
    IO,
    MAX_ROUTES,
    BackwardOut,
    ForwardOut,
    Route,
    Scan,
    cut_defines,
    walk_defines,
)
from ssmvision.kernels.projected_scan.lines import lines_of, map_slots, saved_states, segment_steps
from ssmvision.kernels.registry import Request
from ssmvision.kernels.routes import Grid

__all__ = ["backward", "can_run", "forward"]

MAX_RANK = 64
MAX_POSITIONS = 1 << 16
MERGE_BLOCK = 256


@lru_cache(maxsize=1024)
def _kernel(program: str, device: int, **defines: int | str) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    return kernel(program, program, defines, device)


@lru_cache(maxsize=16)
def _shared_limit(device: int) -> int:
    properties: Any = torch.cuda.get_device_properties(device)  # torch's types lack the field
    limit: int = properties.shared_memory_per_block_optin
    return limit


def can_run(request: Request) -> str | None:
    """Why the request cannot run on CUDA, or None; sizes and routes count where the request is a `ProjectedRequest`."""
    if not request.device.startswith("cuda"):
        return f"{request.device} is not a CUDA device"
    if request.dtype != torch.float32:
        return f"computes in float32, so {request.dtype} is left to others"
    reason = available(request.device)
    if reason is not None or not isinstance(request, ProjectedRequest):
        return reason
    return _shape_reason(request) or _size_reason(request)


def _shape_reason(request: ProjectedRequest) -> str | None:
    if not request.shared:
        return "takes one x for all routes"
    if request.merge == "none":
        return "merges the routes"
    if request.states not in (1, 2, 4):
        return f"is made for 1, 2 or 4 states, not {request.states}"
    if not 1 <= request.rank <= MAX_RANK:
        return f"is made for ranks 1 to {MAX_RANK}, not {request.rank}"
    if request.channels % 8 or request.channels == 0:
        return f"needs a multiple of 8 channels, not {request.channels}"
    if len(request.routes) > MAX_ROUTES:
        return f"takes at most {MAX_ROUTES} routes, not {len(request.routes)}"
    for name in request.routes:
        if lines_of(name, request.grid) is None:
            return f"cannot walk the route {name} of the grid {request.grid}, which is not made of equal lines"
    return None


def _size_reason(request: ProjectedRequest) -> str | None:
    positions = int(np.prod(request.grid))
    device = torch.device(request.device)
    limit = _shared_limit(torch.cuda.current_device() if device.index is None else device.index)
    slots, steps = map_slots(request.grid), segment_steps(request.routes, request.grid, request.states)
    segments = saved_states(request.routes, request.grid, request.states)
    # Whether inputs are float32 or shorter is not known here, so both have to fit.
    size = Size(slots, segments, steps, request.rank, request.states, False)
    if positions > MAX_POSITIONS or forward_pass(size, limit) is None or backward_pass(size, limit) is None:
        return f"holds an image in shared memory; {positions} positions do not fit into {limit} bytes"
    return None


class _Inputs:
    """The op's inputs, contiguous: x and the projections in one dtype, the others in float32; and what follows."""

    def __init__(self, args: ProjectedArgs, *others: Tensor) -> None:
        dtype = torch.promote_types(args.x.dtype, args.projected.dtype)
        for t in others:
            dtype = torch.promote_types(dtype, t.dtype)
        self.args, self.dtype = args, dtype
        self.x = _aligned(args.x.to(dtype))
        self.projected = _rows(args.projected.to(dtype))
        self.weight, self.A = (t.float().contiguous() for t in (args.dt_weight, args.A))
        self.D, self.bias = (None if t is None else t.float().contiguous() for t in (args.D, args.delta_bias))
        self.batch, self.length, self.channels = self.x.shape
        self.routes, _, self.states = self.A.shape
        self.rank = self.weight.shape[2]
        self.tiles = -(-self.channels // TILE)
        self.half = dtype != torch.float32
        self.device: int = self.x.device.index
        routes, grid = args.routes, args.grid
        self.steps, self.segments = segment_steps(routes, grid, self.states), saved_states(routes, grid, self.states)
        self.even = all(_route(name, grid, self.steps).total == self.segments for name in routes)
        self.size = Size(map_slots(grid), self.segments, self.steps, self.rank, self.states, self.half)

    def defines(self, **more: int) -> dict[str, int | str]:
        """The macros that every program takes."""
        return {"IO": IO[self.dtype], "R": self.rank, "NS": self.states, **more}

    def cut(self, backward: bool) -> Pass:
        """The pass's cut; `can_run` has made sure that there is one."""
        choose = backward_pass if backward else forward_pass
        cut = choose(self.size, _shared_limit(self.device))
        if cut is None:
            raise ValueError(f"{self.length} positions do not fit into this device's shared memory")
        return cut

    def images(self, cut: Pass, backward: bool) -> int:
        """Images of a block."""
        return images_per_block(
            self.size,
            cut,
            _shared_limit(self.device),
            backward=backward,
            batch=self.batch,
            tiles=self.tiles,
            processors=processors(self.device),
        )

    def scan(self, cut: Pass, images: int) -> Scan:
        """The parameter block of a pass."""
        routes = (_route(name, self.args.grid, self.steps) for name in self.args.routes)
        pointers = (self.x, self.projected, self.weight, self.A, self.D, self.bias)
        batch, row, route, _ = self.projected.stride()
        return Scan(
            *(_address(t) for t in pointers),
            proj_b=batch,
            proj_k=route,
            proj_l=row,
            L=self.length,
            batch=self.batch,
            K=self.routes,
            E=self.channels,
            tiles=self.tiles,
            rounds=cut.rounds,
            slots=self.size.slots,
            segments=self.segments,
            images=images,
            kept=cut.kept,
            apart=cut.apart,
            scale=1 / self.routes if self.args.merge == "mean" else 1.0,
            routes=(Route * MAX_ROUTES)(*routes),
        )

    def launch(
        self, program: str, cut: Pass, images: int, out: ctypes.Structure, backward: bool, **defines: int
    ) -> None:
        """One block for so many images and each channel tile."""
        shared = shared_bytes(self.size, backward, cut, images)
        row = self.projected.stride(1)
        walk = walk_defines(self.args.routes, self.args.grid, self.steps, self.channels, row)
        flags = self.defines(MANY=int(images > 1), **defines) | cut_defines(cut, self.size, walk, backward) | walk
        compiled = _kernel(program, self.device, **flags)
        grid = (-(-self.batch // images) * self.tiles, 1, 1)
        compiled.launch(grid, (cut.warps * 32, 1, 1), shared, None, (self.scan(cut, images), out))


@lru_cache(maxsize=512)
def _route(name: str, grid: Grid, steps: int) -> Route:
    """A route's entry in the parameter block."""
    lines = lines_of(name, grid)
    if lines is None:
        raise ValueError(f"the route {name} of the grid {grid} is not made of equal lines")
    segments = -(-lines.length // steps)
    return Route(lines.length, segments, lines.number * segments, *lines[2:], 1 / segments)


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _aligned(t: Tensor) -> Tensor:
    """Contiguous, and at an address from which 16 bytes are read at once."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _rows(projected: Tensor) -> Tensor:
    """With rows that are read 16 bytes at a time: as it is, or padded with zeros to a multiple of 8 numbers."""
    size = projected.element_size()
    strides = [stride * size % 16 == 0 for stride in projected.stride()[:3]]
    whole = projected.shape[3] % 8 == 0 and projected.stride(3) == 1
    if whole and projected.data_ptr() % 16 == 0 and all(strides):
        return projected
    padded = torch.nn.functional.pad(projected, (0, -projected.shape[3] % 8)).contiguous()
    return padded if padded.data_ptr() % 16 == 0 else padded.clone()


def forward(args: ProjectedArgs, save_states: bool) -> tuple[Tensor, Tensor]:
    """Scan; returns as `composition.forward`."""
    if args.x.numel() == 0:
        return composition.forward(args, save_states)
    t = _Inputs(args)
    out = torch.empty_like(t.x)
    count = t.segments if save_states else 0
    # Of a map that is not square, some routes have fewer segments; nothing is left unset in a result.
    make = torch.empty if t.even else torch.zeros
    saved = make(t.batch, t.routes, count, t.states, t.channels, device=out.device)
    block = ForwardOut(out.data_ptr(), saved.data_ptr() if save_states else None)
    cut = t.cut(False)
    t.launch("projected_forward", cut, t.images(cut, False), block, False, SAVE=int(save_states))
    return out.to(args.x.dtype), saved


def backward(args: ProjectedArgs, saved: Tensor, dout: Tensor) -> Grads:
    """Gradients; takes and returns as `composition.backward`."""
    if args.x.numel() == 0:
        return composition.backward(args, saved, dout)
    t = _Inputs(args, dout)
    dout = _aligned(dout.to(t.dtype))
    cut = t.cut(True)
    images = t.images(cut, True)
    groups = -(-t.batch // images)
    device, sizes = dout.device, (groups, t.routes, t.channels)
    numbers = t.rank + 2 * t.states
    dx = torch.empty_like(t.x)
    sums = torch.empty(t.tiles, t.batch, t.length, t.routes, -(-numbers // 8) * 8, device=device)
    dA, dbias = torch.empty(*sizes, t.states, device=device), torch.empty(sizes, device=device)
    dD = torch.empty(groups, t.channels, device=device)
    dweight = torch.empty(*sizes, t.rank, device=device) if t.half else None
    draw = None if t.half else torch.empty(t.batch, t.routes, t.length, t.channels, device=device)
    outs = (dout, saved, dx, sums, dweight, dA, dbias, dD, draw)
    t.launch("projected_backward", cut, images, BackwardOut(*(_address(v) for v in outs)), True)
    dprojected = torch.empty(t.batch, t.length, t.routes, numbers, dtype=t.dtype, device=device)
    _merge(t, sums, dprojected)
    low = t.projected[..., : t.rank]
    weight = _over_batch(dweight) if draw is None else torch.einsum("bkle,blkr->ker", draw, low)
    D = dD.sum(0).expand(t.routes, -1)
    grads = (dx, dprojected, weight, _over_batch(dA), D, _over_batch(dbias))
    return tuple(None if v is None else g.to(v.dtype) for g, v in zip(grads, args[:6], strict=True))


def _over_batch(part: Tensor | None) -> Tensor:
    assert part is not None
    return part.sum(0)


def _merge(t: _Inputs, sums: Tensor, out: Tensor) -> None:
    """Adds the channel tiles' sums into `out` (B, L, K, R + 2 N)."""
    rows = t.batch * t.length * t.routes
    scale = 1 / t.routes if t.args.merge == "mean" else 1.0
    blocks = min(-(-rows * sums.shape[4] // 4 // MERGE_BLOCK), 1 << 16)
    compiled = _kernel("projected_merge", t.device, **t.defines(S=1))
    compiled.launch((blocks, 1, 1), (MERGE_BLOCK, 1, 1), 0, None, (sums, out, rows, t.tiles, scale))
