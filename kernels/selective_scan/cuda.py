"""CUDA backend: every route of a scan in one launch a phase, compiled at run time from csrc/.

Forward: a thread walks one or two channels of a segment of a route; routes that are each other's reverse meet half-way
and are merged there. Where batch x routes x channels do not fill the GPU, routes are cut into segments, whose entry
states a first pass finds. Backward: see csrc/backward.cu. Nothing is accumulated by atomics, so two runs are bitwise
equal.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.cuda.host import can_run, processors
from ssmvision.kernels.selective_scan import chunked
from ssmvision.kernels.selective_scan.args import Grads, ScanArgs
from ssmvision.kernels.selective_scan.config import CudaConfig, backward_config, forward_config, n_saved
from ssmvision.kernels.selective_scan.cuda_inputs import Inputs, as_stream, inputs, pairs_fit, quads_fit, rows_fit
from ssmvision.kernels.selective_scan.cuda_programs import (
    IO,
    BackwardOut,
    ForwardOut,
    Scan,
    StateOut,
    state_lanes,
)
from ssmvision.kernels.selective_scan.route_table import RouteTable, route_table

__all__ = ["backward", "can_run", "forward", "segment_entries"]

GROUP = 16  # states per launch
BACKWARD_CHANNELS = 64  # of a block of csrc/backward.cu
BLOCK, CARRY_THREADS = 256, 512  # the latter: 32 RUNS of csrc/merge.cu
# How routes meet: macro OUT of csrc/forward.cu.
APART, FINISHED, PAIR_FINISHED, PAIRS_APART = range(4)


@lru_cache(maxsize=1024)
def _kernel(program: str, name: str, device: int, **defines: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    return kernel(program, name, defines, device)


def _address(t: Tensor | None) -> int | None:
    return None if t is None else t.data_ptr()


class _Pass(NamedTuple):
    """What the launches of one direction share: inputs, routes, cut, and the definitions common to all kernels."""

    t: Inputs
    walked: Tensor  # x, or the incoming gradient
    table: RouteTable
    config: CudaConfig
    scale: float
    defines: dict[str, int]

    @property
    def device(self) -> int:
        """Index of the device."""
        return int(self.walked.device.index)

    def scan(self, channels: int, mirrored: bool) -> Scan:
        """The parameter block for kernels whose tiles have this many channels; `_launch` fills in the states."""
        t, table, config = self.t, self.table, self.config
        batch, routes, length, width = t.delta.shape
        return Scan(
            *(as_stream(v) for v in (self.walked, t.delta, t.B, t.C, t.z)),
            *(_address(v) for v in (t.A, t.D, t.bias, table.route, table.lengths)),
            mirror=_address(table.mirror) if mirrored else None,
            L=length,
            batch=batch,
            K=routes,
            E=width,
            N=t.A.shape[2],
            M=table.route.shape[1],
            segments=config.segments,
            segment=config.segment,
            tiles=-(-width // channels),
            scale=self.scale,
        )


def _launch(
    program: str, name: str, defines: dict[str, int], scan: Scan, out: ctypes.Structure, blocks: int, threads: int,
    device: int, shared_bytes: int = 0,
) -> None:  # fmt: skip
    """One launch for each 16 states."""
    compiled = _kernel(program, name, device, **defines)
    for n0 in range(0, scan.N, GROUP):
        scan.n0, scan.Ns = n0, min(GROUP, scan.N - n0)
        compiled.launch((blocks, 1, 1), (threads, 1, 1), shared_bytes, None, (scan, out))


def _segment_entries(p: _Pass, mirrored: bool, start: Tensor | None, reverse: bool) -> Tensor:
    """State entering each segment, (B, K, segments, N, E); in reverse the adjoint, from behind."""
    scan = p.scan(32 * p.config.channels, mirrored)
    device = p.walked.device
    shape = (scan.batch, scan.K, scan.segments)
    end = torch.empty(*shape, scan.N, scan.E, device=device)
    sum_dt = torch.empty(*shape, scan.E, device=device)
    out = StateOut(end.data_ptr(), sum_dt.data_ptr())
    blocks = scan.tiles * scan.segments * scan.batch * scan.K
    defines = {**p.defines, "CH": p.config.channels}
    if p.defines["IO"] == IO[torch.float32]:  # reading 16 bytes at a time, the states took 8 % longer
        defines["VEC"] = 0
    _launch("scan_state", "scan_adjoint" if reverse else "scan_state", defines, scan, out, blocks, 32, p.device)
    entry = torch.empty_like(end)
    rows = scan.batch * scan.K
    _kernel("scan_merge", "carry", p.device, IO=p.defines["IO"]).launch(
        (-(-rows * scan.N * scan.E // 32), 1, 1),
        (CARRY_THREADS, 1, 1),
        0,
        None,
        (end, sum_dt, p.t.A, start, entry, rows, scan.K, scan.segments, scan.N, scan.E, int(reverse)),
    )
    return entry


def _meeting(args: ScanArgs, table: RouteTable, n_state: int) -> int:
    """Value of OUT."""
    if n_state > GROUP:
        return APART
    if args.merge == "none" or len(args.routes) == 1:
        return FINISHED
    if table.pairs is None:
        return APART
    return PAIR_FINISHED if len(args.routes) == 2 else PAIRS_APART


def _forward_pass(args: ScanArgs) -> _Pass:
    t = inputs(args)
    batch, routes, _, width = t.delta.shape
    table = route_table(args.routes, args.grid, t.delta.device)
    pairs = pairs_fit(t, t.x)
    config = forward_config(batch * routes, width, table.steps, pairs, processors(t.delta.device.index))
    defines = {
        "IO": IO[t.x.dtype],
        "NS": state_lanes(min(t.A.shape[2], GROUP)),
        "VEC": int(quads_fit(t)),
        "SOFTPLUS": int(args.delta_softplus),
        "GATE": 0,
    }
    return _Pass(t, t.x, table, config, 1 / routes if args.merge == "mean" else 1.0, defines)


def segment_entries(args: ScanArgs) -> Tensor | None:
    """State entering each segment that a forward cuts the routes into, for `forward`; None where it cuts nothing."""
    if args.delta.numel() == 0:
        return None
    p = _forward_pass(args)
    mirrored = _meeting(args, p.table, p.t.A.shape[2]) >= PAIR_FINISHED
    return _segment_entries(p, mirrored, None, reverse=False) if p.config.segments > 1 else None


def forward(
    args: ScanArgs, save_states: bool, entry: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scan; returns as `chunked.forward`. `entry`, of `segment_entries` for the same inputs, saves finding it again."""
    if args.delta.numel() == 0:
        return chunked.forward(args, save_states)
    p = _forward_pass(args)
    t, table, device = p.t, p.table, p.walked.device
    batch, routes, length, width = t.delta.shape
    n_state, dtype = t.A.shape[2], t.x.dtype
    last = torch.empty(batch, routes, width, n_state, device=device)
    saved = torch.empty(n_saved(length, "cuda") if save_states else 0, batch, routes, n_state, width, device=device)
    meeting = _meeting(args, table, n_state)
    walkers = 2 if meeting >= PAIR_FINISHED else 1
    if entry is None and p.config.segments > 1:
        entry = _segment_entries(p, walkers == 2, None, reverse=False)

    apart = args.merge == "none"
    new = torch.empty if table.covers else torch.zeros
    out = new((batch, routes, length, width) if apart else (batch, length, width), dtype=dtype, device=device)
    ungated = new(out.shape, dtype=dtype, device=device) if t.z is not None and save_states else None
    partial = None if meeting == FINISHED else new((batch, routes // walkers, length, width), device=device)
    finishes = meeting in (FINISHED, PAIR_FINISHED)
    block = ForwardOut(
        out=out.data_ptr() if finishes else None,
        partial=_address(partial),
        ungated=_address(ungated) if finishes else None,
        entry=_address(entry),
        saved=saved.data_ptr() if save_states else None,
        last=last.data_ptr(),
        pairs=_address(table.pairs),
        out_per_route=int(apart),
    )
    scan = p.scan(32 * p.config.channels, walkers == 2)
    gate = int(finishes and t.z is not None)
    defines = {**p.defines, "CH": p.config.channels, "OUT": meeting, "GATE": gate, "MAIL": int(rows_fit(t))}
    blocks = scan.tiles * scan.segments * batch * (routes // walkers)
    _launch("scan_forward", "scan_forward", defines, scan, block, blocks, 32 * walkers, p.device)
    if partial is not None and not finishes:
        _merge(partial, t.z, ungated, out, p.scale)
    ungated = None if ungated is None else ungated.to(args.x.dtype)
    return out.to(args.x.dtype), last, saved, ungated


def _merge(partial: Tensor, z: Tensor | None, ungated: Tensor | None, out: Tensor, scale: float) -> None:
    """Fill out (B, L, E) with silu(z) scale (sum of the parts (B, G, L, E)); with G = 1 both may be (B, K, L, E)."""
    batch, parts = (1, 1) if out.dim() == 4 else partial.shape[:2]
    size = out.numel() // batch
    z = None if z is None else z.contiguous()
    fours = size % 4 == 0 and (z is None or z.data_ptr() % (4 * z.element_size()) == 0)
    blocks = min(-(-size // BLOCK), 4096)
    _kernel("scan_merge", "merge", out.device.index, IO=IO[out.dtype]).launch(
        (blocks * batch, 1, 1),
        (BLOCK, 1, 1),
        0,
        None,
        (partial, z, ungated, out, scale, parts, size, int(fours), blocks),
    )


def backward(
    args: ScanArgs,
    saved: Tensor,
    ungated: Tensor | None,
    dout: Tensor,
    dlast: Tensor | None,
    into: tuple[Tensor, Tensor] | None = None,
) -> Grads:
    """Gradients; takes and returns as `chunked.backward`.

    Where a single tile's float sums are the gradients of B and C, they are written to `into` if that is given.
    """
    if args.delta.numel() == 0:
        return chunked.backward(args, saved, ungated, dout, dlast)
    t = inputs(args, dout)
    dout = dout.to(t.x.dtype).contiguous()
    batch, routes, _, width = t.delta.shape
    table = route_table(args.routes, args.grid, dout.device)
    config = backward_config(batch * routes, width, table.steps, processors(dout.device.index))
    n_state, pairs = t.A.shape[2], pairs_fit(t, dout)
    defines = {
        "IO": IO[dout.dtype],
        "NS": state_lanes(min(n_state, GROUP)),
        "VEC": int(quads_fit(t)),
        "SOFTPLUS": int(args.delta_softplus),
        "GATE": int(t.z is not None),
    }
    scale = 1 / routes if args.merge == "mean" else 1.0
    p = _Pass(t, dout, table, replace(config, channels=2 if pairs else 1), scale, defines)
    carry = None if dlast is None else dlast.float().transpose(2, 3).contiguous()
    if config.segments > 1:
        carry = _segment_entries(p, False, carry, reverse=True)
    if into is not None and not (table.covers and _takes_sums(t, into[0])):
        into = None
    parts = _backward_routes(p, saved, carry, pairs, into)

    if into is None:
        dB, dC = (torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in (t.B, t.C))
        _sum_rows(parts.BC.flatten(1), dB, dC)
    else:
        dB, dC = into
    dA = torch.empty_like(t.A)
    dD, dbias = (torch.empty(routes, width, device=dout.device) for _ in range(2))
    _sum_rows(parts.ADb, dA, dD, dbias)
    dx = _sum_routes(parts.x, dout.dtype) if t.x.dim() == 3 else parts.x
    dz = None if t.z is None or ungated is None else _gate_backward(t.z, dout, ungated.to(dout.dtype).contiguous())
    grads = (dx, parts.delta, dA, dB, dC, dD, dz, dbias)
    return tuple(None if v is None or g is None else g.to(v.dtype) for g, v in zip(grads, args[:8], strict=True))


def _takes_sums(t: Inputs, place: Tensor) -> bool:
    """Whether the kernel may write a single tile's sums there: float rows of (B, K, L, N), one after the other."""
    batch, routes, length, _ = t.B.shape
    row = place.stride(2)
    follow = (batch == 1 or place.stride(0) == routes * length * row) and (
        routes == 1 or place.stride(1) == length * row
    )
    return t.delta.shape[-1] <= BACKWARD_CHANNELS and place.dtype == t.B.dtype == torch.float32 and follow


class _Parts(NamedTuple):
    """What the backward kernel writes: x and delta (B, K, L, E), and parts of the other gradients to be summed.

    BC: (tiles, 2, B x K x L x N) floats, nothing if they are written elsewhere; ADb: (B x segments, K x E x (N + 2)), A
    first, then D and delta_bias.
    """

    x: Tensor
    delta: Tensor
    BC: Tensor
    ADb: Tensor


def _parts(t: Inputs, scan: Scan, covers: bool, dtype: torch.dtype, with_bc: bool) -> _Parts:
    """Floats where something is added up afterwards; zeros where a route does not reach every position."""
    device, grouped = t.delta.device, scan.N > GROUP
    new = torch.empty if covers else torch.zeros
    shape = t.delta.shape
    dx = new(shape, dtype=torch.float32 if grouped or t.x.dim() == 3 else dtype, device=device)
    ddelta = new(shape, dtype=torch.float32 if grouped else dtype, device=device)
    BC = new(scan.tiles, 2, scan.batch * scan.K * scan.L * scan.N if with_bc else 0, device=device)
    ADb = torch.empty(scan.batch * scan.segments, scan.K * scan.E * (scan.N + 2), device=device)
    return _Parts(dx, ddelta, BC, ADb)


def _backward_routes(
    p: _Pass, saved: Tensor, carry: Tensor | None, pairs: bool, into: tuple[Tensor, Tensor] | None
) -> _Parts:
    t = p.t
    scan = p.scan(BACKWARD_CHANNELS, False)
    parts = _parts(t, scan, p.table.covers, p.walked.dtype, into is None)
    n_bc, n_ke = parts.BC.shape[2], scan.K * scan.E
    BC, A = parts.BC.data_ptr(), parts.ADb.data_ptr()
    dB, dC = (BC, BC + 4 * n_bc) if into is None else (into[0].data_ptr(), into[1].data_ptr())
    D = A + 4 * n_ke * scan.N
    out = BackwardOut(
        u=as_stream(t.x),
        saved=saved.data_ptr(),
        carry=_address(carry),
        dx=parts.x.data_ptr(),
        ddelta=parts.delta.data_ptr(),
        dB=dB,
        dC=dC,
        dA=A,
        dD=D,
        dbias=D + 4 * n_ke,
        per_tile=2 * n_bc,
        per_segment=parts.ADb.shape[1],
        bc_row=scan.N if into is None else into[0].stride(2),
    )
    lanes = state_lanes(min(scan.N, GROUP), least=4)
    mail = int(pairs and rows_fit(t, p.walked))
    flags = {"PAIRS": int(pairs), "MAIL": mail, "FLOAT_DX": int(t.x.dim() == 3), "GROUPED": int(scan.N > GROUP)}
    blocks = scan.tiles * scan.segments * scan.batch * scan.K
    defines = {**p.defines, **flags, "NS": lanes}
    size = backward_shared_bytes(lanes, t.x.element_size(), p.defines["GATE"], mail)
    _launch("scan_backward", "scan_backward", defines, scan, out, blocks, 128, p.device, size)
    return parts


def backward_shared_bytes(states: int, element: int, gate: int, mail: int) -> int:
    """sizeof(Shared) in csrc/backward.cu."""
    warps, chunk, lanes, addresses = 4, 16, states // 4, 32 * (element if mail else 1)
    per_pair = 16 + 8 + (4 + gate) * 2 * element
    per_warp = chunk * 8 * per_pair + 5 * lanes * 32 * 8 + 4 * 36 * 16 + 8 * 2 * 3 * 4 + addresses
    return warps * (per_warp + 2 * lanes * 34 * 16) + 2 * chunk * 2 * states * 4 + 2 * chunk * 4 + 32


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
    batch, _, length, width = part.shape
    out = torch.empty(batch, length, width, dtype=dtype, device=part.device)
    _merge(part, None, None, out, 1.0)
    return out


def _gate_backward(z: Tensor, dout: Tensor, ungated: Tensor) -> Tensor:
    dz = torch.empty(z.shape, dtype=z.dtype, device=z.device)
    width = z.shape[-1]
    rows = z.flatten(1, -2) if z.dim() == 3 else z.contiguous().flatten(1, 2)
    walked = (dout, rows, ungated, dz)
    size = 4 * z.element_size()
    fours = (
        width % 4 == 0 and all(v.data_ptr() % size == 0 for v in walked) and not any(s % 4 for s in rows.stride()[:2])
    )
    threads = 128 if width > 256 else 64
    _kernel("scan_merge", "gate_backward", z.device.index, IO=IO[z.dtype]).launch(
        (rows.shape[0] * rows.shape[1], 1, 1),
        (threads, 1, 1),
        0,
        None,
        (*walked, width, rows.shape[1], rows.stride(0), rows.stride(1), int(fours)),
    )
    return dz
