"""Triton backend: the same cut as the CUDA backend's, for GPUs that have no NVRTC (AMD's, Intel's).

A program walks a part of a route for a tile of channels, one step after another. Where batch x routes x tiles do not
fill the GPU, routes are cut into parts, whose entry states a first pass finds. Nothing is accumulated by atomics, so
two runs are bitwise equal. Importing this module does not import triton.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.registry import Request
from ssmvision.kernels.selective_scan import chunked
from ssmvision.kernels.selective_scan.args import Grads, ScanArgs, as_inputs
from ssmvision.kernels.selective_scan.config import n_saved
from ssmvision.kernels.selective_scan.route_table import RouteTable, route_table
from ssmvision.kernels.selective_scan.triton_config import ELEMENTS, SCRATCH_BYTES, TritonConfig, triton_config

__all__ = ["backward", "can_run", "forward"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Triton's oldest NVIDIA generation.
MIN_CAPABILITY = (8, 0)


def can_run(request: Request) -> str | None:
    """Why the request cannot run on Triton, or None."""
    device = torch.device(request.device)
    if device.type not in ("cuda", "xpu"):
        return f"{request.device} is no GPU that triton compiles for"
    if request.dtype not in DTYPES:
        return f"computes in float32, so {request.dtype} is left to others"
    if not torch.get_device_module(device).is_available():
        return f"no {device.type} device is visible"
    if device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(device)
        if capability < MIN_CAPABILITY:
            return f"{request.device} is sm_{capability[0]}{capability[1]}; triton needs sm_80 or newer"
    return _build_reason()


@cache
def _build_reason() -> str | None:
    """Why triton cannot compile here: it makes its launchers with the system's C compiler."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if os.environ.get("CC") is None and shutil.which("gcc") is None and shutil.which("clang") is None:
        return "triton needs a C compiler: install gcc or clang, or name one in the environment variable CC"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        return f"triton needs Python's headers and {header} is missing: install python3-dev"
    return None


def _kernel(name: str) -> Any:
    """A kernel by its name; imports triton at the first call."""
    home = "triton_backward" if name in ("gate_backward", "scan_adjoint", "scan_backward") else "triton_forward"
    return getattr(import_module(f"ssmvision.kernels.selective_scan.{home}"), name)


def _lanes(device: torch.device) -> int:
    """Lanes of a warp: 64 on AMD's data-centre GPUs, 32 elsewhere."""
    if device.type == "cuda" and torch.version.hip is not None:
        return int(torch.cuda.get_device_properties(device).warp_size)
    return 32


class _Scan(NamedTuple):
    """A call's inputs, contiguous, with A (K, N, E) and D, bias (K, E) in float32; and how it is cut."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None
    table: RouteTable
    config: TritonConfig
    softplus: bool

    @property
    def rows(self) -> int:
        """Batch x routes."""
        return self.delta.shape[0] * self.delta.shape[1]

    @property
    def programs(self) -> int:
        return self.config.tiles * self.rows * self.config.parts

    def sizes(self) -> dict[str, int]:
        """What every kernel that walks a route asks for."""
        _, routes, length, channels = self.delta.shape
        return {
            "length": length,
            "channels": channels,
            "n_routes": routes,
            "n_rows": self.rows,
            "max_steps": self.table.route.shape[1],
            "part_steps": self.config.part_steps,
            "SOFTPLUS": self.softplus,
            **self.blocks(),
        }

    def blocks(self) -> dict[str, int]:
        """Sizes that a kernel is compiled for."""
        config = self.config
        blocks = {"BLOCK_N": config.block_n, "BLOCK_E": config.block_e, "num_warps": config.warps}
        return {"N": self.A.shape[1], **blocks}


def _scan(args: ScanArgs) -> _Scan:
    def exact(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.float().contiguous()

    batch, routes, _, channels = args.delta.shape
    device, n_state = args.delta.device, args.A.shape[2]
    table = route_table(args.routes, args.grid, device)
    config = triton_config(batch * routes, channels, n_state, table.steps, _lanes(device), device.type)
    x, delta, B, C = (t.contiguous() for t in (args.x, args.delta, args.B, args.C))
    A = args.A.float().transpose(1, 2).contiguous()
    z = None if args.z is None else args.z.contiguous()
    return _Scan(x, delta, A, B, C, exact(args.D), z, exact(args.delta_bias), table, config, args.delta_softplus)


def _strides(name: str, t: Tensor) -> dict[str, int]:
    """Strides over batch and routes of a (B, L, E) or (B, K, L, E) tensor."""
    return {f"{name}_batch": t.stride(0), f"{name}_route": t.stride(1) if t.dim() == 4 else 0}


def _carry(s: _Scan, end: Tensor, sum_dt: Tensor, start: Tensor | None, reverse: bool) -> Tensor:
    """State entering each part, (parts, rows, N, E)."""
    entry = torch.empty_like(end)
    _kernel("scan_carry")[(s.config.tiles * s.rows,)](
        end, sum_dt, s.A, start, entry, s.delta.shape[3], s.delta.shape[1], s.rows, s.config.parts,
        REVERSE=reverse, **s.blocks(),
    )  # fmt: skip
    return entry


def _part_results(s: _Scan) -> tuple[Tensor, Tensor]:
    """Room for what leaves each part and for its sum of steps."""
    device, channels = s.delta.device, s.delta.shape[3]
    end = torch.empty(s.config.parts, s.rows, s.A.shape[1], channels, device=device)
    return end, torch.empty(s.config.parts, s.rows, channels, device=device)


def _entry_states(s: _Scan) -> Tensor | None:
    if s.config.parts == 1:
        return None
    end, sum_dt = _part_results(s)
    _kernel("scan_part")[(s.programs,)](
        s.x, s.delta, s.A, s.B, s.bias, s.table.route, s.table.lengths, end, sum_dt, **_strides("x", s.x), **s.sizes()
    )
    return _carry(s, end, sum_dt, None, reverse=False)


def forward(args: ScanArgs, save_states: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scan; takes and returns as `chunked.forward`."""
    if args.delta.numel() == 0 or args.A.numel() == 0:
        return chunked.forward(args, save_states)
    with torch.accelerator.device_index(args.delta.device.index):
        return _forward(args, _scan(args), save_states)


def _forward(args: ScanArgs, s: _Scan, save_states: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    batch, routes, length, channels = s.delta.shape
    new = torch.empty if s.table.covers else torch.zeros
    last = new((batch, routes, s.A.shape[1], channels), device=s.x.device)
    saved = new((n_saved(length, s.x.device.type) if save_states else 0, *last.shape), device=s.x.device)
    apart = args.merge == "none"
    shape = (batch, routes, length, channels) if apart else (batch, length, channels)
    direct = s.z is None and (apart or routes == 1)
    y = new((batch, routes, length, channels), dtype=s.x.dtype if direct else torch.float32, device=s.x.device)
    _kernel("scan_forward")[(s.programs,)](
        s.x, s.delta, s.A, s.B, s.C, s.D, s.bias, s.table.route, s.table.lengths,
        _entry_states(s), y, saved if save_states else None, last,
        CHUNK=s.config.chunk, **_strides("x", s.x), **s.sizes(),
    )  # fmt: skip
    if save_states:
        saved[-1] = last
    last = last.transpose(2, 3).contiguous()
    if direct:
        return y.view(shape), last, saved, None
    out = torch.empty(shape, dtype=s.x.dtype, device=s.x.device)
    ungated = torch.empty_like(out) if s.z is not None and save_states else None
    total = out.numel()
    _kernel("merge_routes")[(-(-total // ELEMENTS),)](
        y, s.z, out, ungated, 1 / routes if args.merge == "mean" else 1.0,
        total if apart else length * channels, total, 1 if apart else routes, BLOCK=ELEMENTS,
    )  # fmt: skip
    return out, last, saved, ungated


def _entry_adjoints(s: _Scan, dout: Tensor, scale: float, dlast: Tensor | None) -> Tensor | None:
    start = None if dlast is None else dlast.float().transpose(2, 3).contiguous()
    if s.config.parts == 1:
        return start
    end, sum_dt = _part_results(s)
    _kernel("scan_adjoint")[(s.programs,)](
        s.delta, s.A, s.C, s.z, s.bias, dout, s.table.route, s.table.lengths, end, sum_dt, scale,
        **_strides("g", dout), **s.sizes(),
    )  # fmt: skip
    return _carry(s, end, sum_dt, start, reverse=True)


def backward(args: ScanArgs, saved: Tensor, ungated: Tensor | None, dout: Tensor, dlast: Tensor | None) -> Grads:
    """Gradients; takes and returns as `chunked.backward`."""
    if args.delta.numel() == 0 or args.A.numel() == 0:
        return chunked.backward(args, saved, ungated, dout, dlast)
    with torch.accelerator.device_index(args.delta.device.index):
        s, dout = _scan(args), dout.contiguous()
        scale = 1 / len(args.routes) if args.merge == "mean" else 1.0
        parts = _gradient_parts(s)
        _walk_back(s, saved, dout, scale, _entry_adjoints(s, dout, scale, dlast), parts)
        dA, dD, dbias = (t.unflatten(1, s.delta.shape[:2]).sum((0, 1)) for t in (parts.A, parts.D, parts.bias))
        dz = None if s.z is None or ungated is None else _gate_backward(s.z, dout, ungated.contiguous())
        dx = parts.x if s.x.dim() == 4 else parts.x.sum(1)
        dB, dC = parts.B.sum(0), parts.C.sum(0)
        return as_inputs((dx, parts.delta, dA.transpose(1, 2), dB, dC, dD, dz, dbias), args)


class _Parts(NamedTuple):
    """What the backward kernel writes: x and delta (B, K, L, E), and parts of the other gradients to be summed.

    B, C: (tiles, B, K, L, N); A: (parts, rows, N, E); D, bias: (parts, rows, E).
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor


def _gradient_parts(s: _Scan) -> _Parts:
    new, device = torch.empty if s.table.covers else torch.zeros, s.delta.device
    dx = new(s.delta.shape, dtype=s.x.dtype if s.x.dim() == 4 else torch.float32, device=device)
    ddelta = new(s.delta.shape, dtype=s.delta.dtype, device=device)
    dA, dD = _part_results(s)
    dB, dC = (new((s.config.tiles, *s.B.shape), device=device) for _ in range(2))
    return _Parts(dx, ddelta, dA, dB, dC, dD, torch.empty_like(dD))


def _walk_back(s: _Scan, saved: Tensor, dout: Tensor, scale: float, entry: Tensor | None, parts: _Parts) -> None:
    """The backward kernel, over as many rows at a time as the scratch allows."""
    per_row = s.config.tiles * s.config.parts
    floats = s.config.chunk * s.A.shape[1] * s.config.block_e
    group = min(max(SCRATCH_BYTES // (4 * floats * per_row), 1), s.rows)
    scratch = torch.empty(group * per_row * floats, device=s.delta.device)
    for first_row in range(0, s.rows, group):
        group_rows = min(group, s.rows - first_row)
        _kernel("scan_backward")[(group_rows * per_row,)](
            s.x, s.delta, s.A, s.B, s.C, s.D, s.z, s.bias, dout, s.table.route, s.table.lengths,
            saved, entry, scratch, parts.x, parts.delta, parts.A, parts.B, parts.C, parts.D, parts.bias,
            scale, first_row=first_row, group_rows=group_rows, CHUNK=s.config.chunk,
            **_strides("x", s.x), **_strides("g", dout), **s.sizes(),
        )  # fmt: skip


def _gate_backward(z: Tensor, dout: Tensor, ungated: Tensor) -> Tensor:
    dz = torch.empty_like(z)
    total = z.numel()
    _kernel("gate_backward")[(-(-total // ELEMENTS),)](dout, z, ungated, dz, total, BLOCK=ELEMENTS)
    return dz
