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
from ssmvision.kernels.projected_scan import composition
from ssmvision.kernels.projected_scan.args import Grads, ProjectedArgs, ProjectedRequest, saved_steps
from ssmvision.kernels.projected_scan.config import (
    TILE,
    Pass,
    backward_pass,
    forward_pass,
    shared_bytes,
)
from ssmvision.kernels.projected_scan.cuda_programs import (
    IO,
    MAX_ROUTES,
    BackwardOut,
    ForwardOut,
    Route,
    Scan,
)
from ssmvision.kernels.registry import Request
from ssmvision.kernels.routes import Grid, route_index

__all__ = ["backward", "can_run", "forward"]

MAX_RANK = 64
MAX_POSITIONS = 1 << 16
MERGE_BLOCK = 256


@lru_cache(maxsize=1024)
def _kernel(program: str, device: int, **defines: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    return kernel(program, program, defines, device)


@lru_cache(maxsize=16)
def _shared_limit(device: int) -> int:
    properties: Any = torch.cuda.get_device_properties(device)  # torch's types lack the field
    limit: int = properties.shared_memory_per_block_optin
    return limit


@lru_cache(maxsize=512)
def affine_route(name: str, grid: Grid) -> tuple[int, int, int, int] | None:
    """(n0, s0, s1, base) such that step s is at base + (s % n0) s0 + (s // n0) s1; None where there are none such.

    Also None where the route skips positions.
    """
    index = route_index(name, grid)
    length = len(index)
    if length == 0 or length != int(np.prod(grid)):
        return None
    gaps = np.diff(index)
    s0 = int(gaps[0]) if length > 1 else 0
    breaks = np.flatnonzero(gaps != s0)
    n0 = int(breaks[0]) + 1 if len(breaks) else length
    s1 = int(index[n0] - index[0]) if n0 < length else 0
    step = np.arange(length)
    same = np.array_equal(index, index[0] + step % n0 * s0 + step // n0 * s1)
    return (n0, s0, s1, int(index[0])) if same else None


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
        if affine_route(name, request.grid) is None:
            return f"cannot walk the route {name} of the grid {request.grid}, which is not two nested strides"
    return None


def _size_reason(request: ProjectedRequest) -> str | None:
    positions = int(np.prod(request.grid))
    device = torch.device(request.device)
    limit = _shared_limit(torch.cuda.current_device() if device.index is None else device.index)
    # Whether inputs are float32 or shorter is not known here, so both have to fit.
    sizes = (positions, request.rank, request.states, False, limit)
    if positions > MAX_POSITIONS or forward_pass(*sizes) is None or backward_pass(*sizes) is None:
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
        walks = (affine_route(name, args.grid) for name in args.routes)
        self.walks = [walk for walk in walks if walk is not None]

    def defines(self, **more: int) -> dict[str, int]:
        """The macros that every program takes."""
        return {"IO": IO[self.dtype], "R": self.rank, "NS": self.states, **more}

    def cut(self, backward: bool) -> Pass:
        """The pass's cut; `can_run` has made sure that there is one."""
        choose = backward_pass if backward else forward_pass
        cut = choose(self.length, self.rank, self.states, self.half, _shared_limit(self.device))
        if cut is None:
            raise ValueError(f"{self.length} positions do not fit into this device's shared memory")
        return cut

    def scan(self, rounds: int) -> Scan:
        """The parameter block of a pass."""
        table = (Route * MAX_ROUTES)(*(Route(*walk, 1 / walk[0]) for walk in self.walks))
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
            rounds=rounds,
            rows_magic=_rows_magic(self.args.grid),
            scale=1 / self.routes if self.args.merge == "mean" else 1.0,
            routes=table,
        )

    def launch(self, program: str, cut: Pass, out: ctypes.Structure, backward: bool, **defines: int) -> None:
        """One block for each image and channel tile."""
        shared = shared_bytes(self.length, self.rank, self.states, self.half, backward, cut.warps)
        one_turn = int(all(walk[0] >= cut.steps for walk in self.walks))
        flags = self.defines(S=cut.steps, THREADS=cut.threads, ONE_TURN=one_turn, **defines)
        compiled = _kernel(program, self.device, **flags)
        grid = (self.batch * self.tiles, 1, 1)
        compiled.launch(grid, (cut.warps * 32, 1, 1), shared, None, (self.scan(cut.rounds), out))


def _rows_magic(grid: Grid) -> int:
    """What turns a position into the number of its row, times 2^21; 0 where rows need not be told apart."""
    return -(-(1 << 21) // grid[1]) if len(grid) == 2 and grid[1] % 2 == 0 else 0


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
    every = saved_steps(t.states)
    steps = -(-t.length // every) if save_states else 0
    out = torch.empty_like(t.x)
    saved = torch.empty(t.batch, t.routes, steps, t.states, t.channels, device=out.device)
    block = ForwardOut(out.data_ptr(), saved.data_ptr() if save_states else None)
    t.launch("projected_forward", t.cut(False), block, False, SAVE=every if save_states else 0)
    return out.to(args.x.dtype), saved


def backward(args: ProjectedArgs, saved: Tensor, dout: Tensor) -> Grads:
    """Gradients; takes and returns as `composition.backward`."""
    if args.x.numel() == 0:
        return composition.backward(args, saved, dout)
    t = _Inputs(args, dout)
    dout = _aligned(dout.to(t.dtype))
    device, sizes = dout.device, (t.batch, t.routes, t.channels)
    numbers = t.rank + 2 * t.states
    dx = torch.empty_like(t.x)
    sums = torch.empty(t.tiles, t.batch, t.length, t.routes, -(-numbers // 8) * 8, device=device)
    dA, dbias = torch.empty(*sizes, t.states, device=device), torch.empty(sizes, device=device)
    dD = torch.empty(t.batch, t.channels, device=device)
    dweight = torch.empty(*sizes, t.rank, device=device) if t.half else None
    draw = None if t.half else torch.empty(t.batch, t.routes, t.length, t.channels, device=device)
    outs = (dout, saved, dx, sums, dweight, dA, dbias, dD, draw)
    t.launch("projected_backward", t.cut(True), BackwardOut(*(_address(v) for v in outs)), True)
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
    compiled = _kernel("projected_merge", t.device, **t.defines(S=1, ONE_TURN=0))
    compiled.launch((blocks, 1, 1), (MERGE_BLOCK, 1, 1), 0, None, (sums, out, rows, t.tiles, scale))
