"""CUDA backend: every route of a scan in one launch a phase, compiled at run time from csrc/.

Forward: a thread walks one channel of a segment of a route. Where batch x routes x channels do not fill the GPU, routes
are cut into segments, whose entry states a first pass finds. Backward: see csrc/backward.cu. Nothing is accumulated by
atomics, so two runs are bitwise equal.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, available, kernel
from ssmvision.kernels.registry import Request
from ssmvision.kernels.routes import Grid, route_index
from ssmvision.kernels.selective_scan import chunked
from ssmvision.kernels.selective_scan.args import Grads, ScanArgs
from ssmvision.kernels.selective_scan.config import CudaConfig, backward_config, forward_config, n_saved
from ssmvision.kernels.selective_scan.cuda_programs import IO, BackwardOut, ForwardOut, Scan, state_lanes

__all__ = ["backward", "can_run", "forward"]

GROUP = 16  # states per launch
BACKWARD_SHARED_BYTES = 76544  # sizeof(Shared) in csrc/backward.cu
BLOCK = 256


@lru_cache(maxsize=1024)
def _kernel(program: str, name: str, device: int, **defines: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    return kernel(program, name, defines, device)


def can_run(request: Request) -> str | None:
    """Why the request cannot run on CUDA, or None."""
    if not request.device.startswith("cuda"):
        return f"{request.device} is not a CUDA device"
    if request.dtype not in IO:
        return f"computes in float32, so {request.dtype} is left to others"
    return available(request.device)


class _Table(NamedTuple):
    """Routes on a device: positions (K, M) and lengths (K,), int32."""

    route: Tensor
    lengths: Tensor
    steps: int
    covers: bool


@lru_cache(maxsize=256)
def _table(routes: tuple[str, ...], grid: Grid, device: torch.device) -> _Table:
    walks = [torch.from_numpy(route_index(name, grid).copy()) for name in routes]
    lengths = [len(walk) for walk in walks]
    route = torch.zeros(len(routes), max(lengths), dtype=torch.int32)
    for row, walk in zip(route, walks, strict=True):
        row[: len(walk)] = walk
    positions = 1
    for size in grid:
        positions *= size
    covers = min(lengths) == positions
    return _Table(route.to(device), torch.tensor(lengths, dtype=torch.int32).to(device), max(lengths), covers)


class _Inputs(NamedTuple):
    """The op's inputs, contiguous: x, delta, B, C and z in one dtype, A, D and bias in float32."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None


def _inputs(args: ScanArgs, *others: Tensor) -> tuple[_Inputs, torch.dtype]:
    walked = [t for t in (args.x, args.delta, args.B, args.C, args.z, *others) if t is not None]
    dtype = walked[0].dtype
    for t in walked:
        dtype = torch.promote_types(dtype, t.dtype)

    def wide(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(dtype).contiguous()

    def exact(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.float().contiguous()

    x, delta, B, C = (t.to(dtype).contiguous() for t in (args.x, args.delta, args.B, args.C))
    A = args.A.float().contiguous()
    return _Inputs(x, delta, A, B, C, exact(args.D), wide(args.z), exact(args.delta_bias)), dtype


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


def _pairs(t: _Inputs, x: Tensor) -> bool:
    """Whether two neighbouring channels may be read and written at once."""
    walked = [v for v in (x, t.x, t.delta, t.z) if v is not None]
    return t.delta.shape[-1] % 2 == 0 and all(v.data_ptr() % (2 * v.element_size()) == 0 for v in walked)


def _forward_defines(args: ScanArgs, dtype: torch.dtype, states: int, channels: int, threads: int) -> dict[str, int]:
    flags = {"SOFTPLUS": int(args.delta_softplus), "GATE": int(args.z is not None)}
    return {"IO": IO[dtype], "NS": state_lanes(min(states, GROUP)), "CH": channels, "THREADS": threads, **flags}


def _scan(args: ScanArgs, t: _Inputs, x: Tensor, table: _Table, config: CudaConfig, tile: int) -> Scan:
    """The parameter block of a pass; `_launch` fills in the group of states."""
    batch, routes, length, channels = t.delta.shape
    return Scan(
        *(_address(v) for v in (x, t.delta, t.B, t.C, t.z, t.A, t.D, t.bias, table.route, table.lengths)),
        L=length,
        batch=batch,
        K=routes,
        E=channels,
        N=t.A.shape[2],
        M=table.route.shape[1],
        segments=config.segments,
        segment=config.segment,
        tiles=-(-channels // tile),
        x_per_route=int(x.dim() == 4),
        scale=1 / routes if args.merge == "mean" else 1.0,
    )


def _launch(
    program: str, name: str, defines: dict[str, int], scan: Scan, out: ctypes.Structure, threads: int, device: int,
    shared_bytes: int = 0,
) -> None:  # fmt: skip
    """One launch for each 16 states."""
    blocks = scan.tiles * scan.segments * scan.batch * scan.K
    for n0 in range(0, scan.N, GROUP):
        scan.n0, scan.Ns = n0, min(GROUP, scan.N - n0)
        compiled = _kernel(program, name, device, **defines)
        compiled.launch((blocks, 1, 1), (threads, 1, 1), shared_bytes, None, (scan, out))


def _carry(t: _Inputs, scan: Scan, end: Tensor, sum_dt: Tensor, start: Tensor | None, io: int, reverse: bool) -> Tensor:
    """State entering each segment, (B, K, segments, N, E)."""
    entry = torch.empty_like(end)
    rows = scan.batch * scan.K
    total = rows * scan.N * scan.E
    _kernel("scan_merge", "carry", end.device.index, IO=io).launch(
        (-(-total // BLOCK), 1, 1),
        (BLOCK, 1, 1),
        0,
        None,
        (end, sum_dt, t.A, start, entry, None, rows, scan.K, scan.segments, scan.N, scan.E, int(reverse)),
    )
    return entry


def _segment_entries(t: _Inputs, scan: Scan, defines: dict[str, int], start: Tensor | None, reverse: bool) -> Tensor:
    """First pass over segments from zero, then the carries between them."""
    device = t.delta.device
    shape = (scan.batch, scan.K, scan.segments)
    end = torch.empty(*shape, scan.N, scan.E, device=device)
    sum_dt = torch.empty(*shape, scan.E, device=device)
    out = ForwardOut(end=end.data_ptr(), sum_dt=sum_dt.data_ptr())
    name = "scan_adjoint" if reverse else "scan_state"
    _launch("scan_forward", name, defines, scan, out, defines["THREADS"], device.index)
    return _carry(t, scan, end, sum_dt, start, defines["IO"], reverse)


def forward(args: ScanArgs, save_states: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scan; returns as `chunked.forward`."""
    if args.delta.numel() == 0:
        return chunked.forward(args, save_states)
    t, dtype = _inputs(args)
    device = t.delta.device
    batch, routes, length, channels = t.delta.shape
    table = _table(args.routes, args.grid, device)
    config = forward_config(batch * routes, channels, table.steps)
    n_state = t.A.shape[2]
    ch = config.channels if _pairs(t, t.x) else 1
    defines = _forward_defines(args, dtype, n_state, ch, config.threads)
    scan = _scan(args, t, t.x, table, config, config.threads * ch)
    last = torch.empty(batch, routes, n_state, channels, device=device)
    saved = torch.empty(n_saved(length) if save_states else 0, *last.shape, device=device)
    entry = _segment_entries(t, scan, defines, None, reverse=False) if config.segments > 1 else None

    apart = args.merge == "none"
    direct = (apart or routes == 1) and n_state <= GROUP
    new = torch.empty if table.covers else torch.zeros
    out = new((batch, routes, length, channels) if apart else (batch, length, channels), dtype=dtype, device=device)
    ungated = new(out.shape, dtype=dtype, device=device) if t.z is not None and save_states else None
    partial = None if direct else new((batch, routes, length, channels), device=device)
    shown = (out, None, ungated) if direct else (None, partial, None)
    block = ForwardOut(
        *(_address(v) for v in (*shown, entry, saved if save_states else None, last)), out_per_route=int(apart)
    )
    _launch("scan_forward", "scan_forward", defines, scan, block, config.threads, device.index)
    if partial is not None:
        _merge(t, partial, ungated, out, scan, apart)
    ungated = None if ungated is None else ungated.to(args.x.dtype)
    return out.to(args.x.dtype), last.transpose(2, 3).contiguous(), saved, ungated


def _merge(t: _Inputs, partial: Tensor, ungated: Tensor | None, out: Tensor, scan: Scan, apart: bool) -> None:
    total = out.numel()
    per_batch = total if apart else total // scan.batch
    _kernel("scan_merge", "merge", out.device.index, IO=IO[out.dtype]).launch(
        _spread(total),
        (BLOCK, 1, 1),
        0,
        None,
        (partial, t.z, ungated, out, scan.scale, 1 if apart else scan.K, per_batch, total),
    )


def backward(args: ScanArgs, saved: Tensor, ungated: Tensor | None, dout: Tensor, dlast: Tensor | None) -> Grads:
    """Gradients; takes and returns as `chunked.backward`."""
    if args.delta.numel() == 0:
        return chunked.backward(args, saved, ungated, dout, dlast)
    t, dtype = _inputs(args, dout)
    dout = dout.to(dtype).contiguous()
    batch, routes, _, channels = t.delta.shape
    table = _table(args.routes, args.grid, t.delta.device)
    config = backward_config(batch * routes, channels, table.steps)
    scan = _scan(args, t, dout, table, config, 32)
    carry = None if dlast is None else dlast.float().transpose(2, 3).contiguous()
    if config.segments > 1:
        carry = _adjoint_entries(args, t, dout, table, config, carry, dtype)

    parts = _parts(t, scan, table.covers, dtype)
    flags = {"PAIRS": int(_pairs(t, dout)), "SOFTPLUS": int(args.delta_softplus), "GATE": int(t.z is not None)}
    defines = {"IO": IO[dtype], **flags}
    block = _backward_out(t, scan, parts, saved, carry)
    _launch("scan_backward", "scan_backward", defines, scan, block, 128, dout.device.index, BACKWARD_SHARED_BYTES)

    dB, dC, dA = torch.empty_like(t.B), torch.empty_like(t.C), torch.empty_like(t.A)
    dD, dbias = (torch.empty(routes, channels, device=dout.device) for _ in range(2))
    _sum_rows(parts.BC.flatten(1), dB, dC)
    _sum_rows(parts.ADb, dA, dD, dbias)
    dx = _sum_routes(parts.x, dtype) if t.x.dim() == 3 else parts.x
    dz = None if t.z is None or ungated is None else _gate_backward(t.z, dout, ungated.to(dtype).contiguous())
    grads = (dx, parts.delta, dA, dB, dC, dD, dz, dbias)
    return tuple(None if v is None or g is None else g.to(v.dtype) for g, v in zip(grads, args[:8], strict=True))


class _Parts(NamedTuple):
    """What the backward kernel writes: x and delta (B, K, L, E), and parts of the other gradients to be summed.

    BC: (tiles, 2, B x K x L x N) floats; ADb: (B x segments, K x E x (N + 2)), A first, then D and delta_bias.
    """

    x: Tensor
    delta: Tensor
    BC: Tensor
    ADb: Tensor


def _parts(t: _Inputs, scan: Scan, covers: bool, dtype: torch.dtype) -> _Parts:
    """Floats where something is added up afterwards; zeros where a route does not reach every position."""
    device, grouped = t.delta.device, scan.N > GROUP
    new = torch.empty if covers else torch.zeros
    dx = new(t.delta.shape, dtype=torch.float32 if grouped or t.x.dim() == 3 else dtype, device=device)
    ddelta = new(t.delta.shape, dtype=torch.float32 if grouped else dtype, device=device)
    BC = new(scan.tiles, 2, t.B.numel(), device=device)
    ADb = torch.empty(scan.batch * scan.segments, scan.K * scan.E * (scan.N + 2), device=device)
    return _Parts(dx, ddelta, BC, ADb)


def _backward_out(t: _Inputs, scan: Scan, parts: _Parts, saved: Tensor, carry: Tensor | None) -> BackwardOut:
    grouped = scan.N > GROUP
    x_float, n_bc, n_ke = grouped or t.x.dim() == 3, t.B.numel(), scan.K * scan.E
    BC, A = parts.BC.data_ptr(), parts.ADb.data_ptr()
    D = A + 4 * n_ke * scan.N
    return BackwardOut(
        *(_address(v) for v in (t.x, saved, carry)),
        dx=None if x_float else parts.x.data_ptr(),
        ddelta=None if grouped else parts.delta.data_ptr(),
        dx_sum=parts.x.data_ptr() if x_float else None,
        ddelta_sum=parts.delta.data_ptr() if grouped else None,
        dB=BC,
        dC=BC + 4 * n_bc,
        dA=A,
        dD=D,
        dbias=D + 4 * n_ke,
        per_tile=2 * n_bc,
        per_segment=parts.ADb.shape[1],
        u_per_route=int(t.x.dim() == 4),
    )


def _spread(n: int) -> tuple[int, int, int]:
    """Blocks for a kernel that strides over n elements."""
    return (min(-(-n // BLOCK), 1 << 16), 1, 1)


def _sum_rows(part: Tensor, *outs: Tensor) -> None:
    """Sums of a float (rows, n) over its rows, into two or three tensors of one dtype that hold n elements together."""
    rows, n = part.shape
    io = IO[outs[0].dtype]
    launch = _kernel("scan_merge", "sum_rows", part.device.index, IO=io).launch
    places = (*outs, None)[:3]
    sizes = (outs[0].numel(), outs[1].numel(), n)
    launch(_spread(n), (BLOCK, 1, 1), 0, None, (part, *places, rows, int(io == 0), *sizes))


def _sum_routes(part: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum of a float (B, K, L, E) over its routes, in `dtype`."""
    batch, routes, length, channels = part.shape
    out = torch.empty(batch, length, channels, dtype=dtype, device=part.device)
    launch = _kernel("scan_merge", "merge", part.device.index, IO=IO[dtype]).launch
    per_batch = length * channels
    launch(_spread(out.numel()), (BLOCK, 1, 1), 0, None, (part, None, None, out, 1.0, routes, per_batch, out.numel()))
    return out


def _adjoint_entries(
    args: ScanArgs,
    t: _Inputs,
    dout: Tensor,
    table: _Table,
    config: CudaConfig,
    start: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Adjoint entering each segment from behind: the forward's first pass on the reverse recurrence."""
    threads = forward_config(1, t.delta.shape[-1], table.steps).threads
    scan = _scan(args, t._replace(B=t.C), dout, table, config, threads)
    defines = _forward_defines(args, dtype, scan.N, 1, threads)
    return _segment_entries(t, scan, defines, start, reverse=True)


def _gate_backward(z: Tensor, dout: Tensor, ungated: Tensor) -> Tensor:
    dz = torch.empty_like(z)
    total = z.numel()
    _kernel("scan_merge", "gate_backward", z.device.index, IO=IO[z.dtype]).launch(
        _spread(total), (BLOCK, 1, 1), 0, None, (dout, z, ungated, dz, total)
    )
    return dz
