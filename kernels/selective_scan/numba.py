"""Numba backend: vector code for the processor at hand, compiled at the first use and kept on disk.

No compiler has to be installed. Tasks (16 channels of a route of an image) are shared out to as many threads as PyTorch
is set to use. A forward walks a task once, its state in the first-level cache; a backward recomputes a chunk's states
from its saved entry state.
Importing this module does not import numba.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssmvision.kernels.cpu.arrays import LANES, filled, flat, whole_vectors
from ssmvision.kernels.cpu.numba import can_run
from ssmvision.kernels.cpu.threads import compiled, share_out
from ssmvision.kernels.routes import route_index
from ssmvision.kernels.selective_scan.args import (
    Grads,
    ScanArgs,
    as_inputs,
    gate_gradient,
    gated,
    merged_gradient,
)
from ssmvision.kernels.selective_scan.config import CHUNK, n_saved

__all__ = ["backward", "can_run", "forward"]

LOG2E = 1.4426950408889634


class _Scan(NamedTuple):
    """A call's inputs as `numba_kernels` takes them, E filled up to whole vectors."""

    sizes: tuple[int, ...]
    inputs: tuple[Any, ...]
    tasks: int
    covers: bool

    @property
    def steps(self) -> int:
        """Of one task: a vector for every position and state."""
        return self.sizes[3] * self.sizes[5]

    def empty(self, *shape: int) -> Tensor:
        """Room for what the kernels write at every visited position: zero where routes leave positions out."""
        return torch.empty(shape) if self.covers else torch.zeros(shape)


def _flat(t: Tensor) -> Any:
    return t.reshape(-1).numpy()


@lru_cache(maxsize=64)
def _index(routes: tuple[str, ...], grid: tuple[int, ...]) -> tuple[Any, Any]:
    """Positions (K, L), flat, and the number of steps of each route (K,)."""
    walks = [route_index(name, grid) for name in routes]
    index = np.zeros((len(walks), int(np.prod(grid))), dtype=np.int64)
    for row, walk in zip(index, walks, strict=True):
        row[: len(walk)] = walk
    return index.reshape(-1), np.array([len(walk) for walk in walks], dtype=np.int64)


def _by_route(t: Tensor, routes: int) -> Tensor:
    """(B, L, E), shared, or (B, K, L, E) -> (B, K, L, E), perhaps expanded."""
    return t if t.dim() == 4 else t.unsqueeze(1).expand(-1, routes, -1, -1)


def _scan(args: ScanArgs, saved: int) -> _Scan:
    batch, routes, length, _ = args.delta.shape
    n_state, channels = args.A.shape[2], whole_vectors(args.A.shape[1])
    wide = (filled(_by_route(args.x, routes), channels), filled(args.delta, channels))
    arrays, strides = zip(*map(flat, (*wide, filled(args.B, n_state), filled(args.C, n_state))), strict=True)
    absent = torch.zeros(routes, channels)
    D, bias = (absent if t is None else filled(t, channels) for t in (args.D, args.delta_bias))
    rates = filled(args.A.transpose(1, 2), channels) * LOG2E
    index, lengths = _index(args.routes, args.grid)
    constants = (*map(_flat, (rates, D, bias)), index, lengths, args.delta_softplus, CHUNK)
    sizes = (saved, batch, routes, length, channels, n_state)
    covers = bool((lengths == length).all())
    return _Scan(
        sizes, (tuple(s[:3] for s in strides), *arrays, *constants), batch * routes * channels // LANES, covers
    )


def _over_routes(t: Tensor) -> Tensor:
    """(B, K, L, E) -> (B, L, E), added in the order of the routes; may overwrite the first one."""
    result = t[:, 0]
    for route in t.unbind(1)[1:]:
        result += route
    return result


def forward(args: ScanArgs, save_states: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scan; what it returns is described at `chunked.forward`."""
    kept = n_saved(args.delta.shape[2], "cpu") if save_states else 0
    scan = _scan(args, kept)
    _, batch, routes, length, channels, n_state = scan.sizes
    y = scan.empty(batch, routes, length, channels)
    states = torch.empty(batch, routes, n_state, channels)
    saved = torch.zeros(kept, batch, routes, n_state, channels)
    share_out(
        compiled("selective_scan", "scan_forward"),
        scan.tasks,
        scan.steps,
        scan.sizes,
        *scan.inputs,
        *map(_flat, (y, states, saved)),
    )
    used = args.A.shape[1]
    y, states, saved = y[..., :used], states[..., :used], saved[..., :used]
    out, ungated = gated(y if args.merge == "none" else _over_routes(y), args, save_states)
    return out, states.transpose(2, 3).contiguous(), saved.contiguous(), ungated


def backward(args: ScanArgs, saved: Tensor, ungated: Tensor | None, dout: Tensor, dlast: Tensor | None) -> Grads:
    """Gradients; arguments and result are described at `chunked.backward`."""
    scan = _scan(args, saved.shape[0])
    _, batch, routes, length, channels, n_state = scan.sizes
    used = args.A.shape[1]
    dy, of_dy = flat(filled(_by_route(merged_gradient(dout.float(), args), routes), channels))
    end = torch.zeros_like(saved[0]) if dlast is None else dlast.transpose(2, 3)
    dx, ddelta = (scan.empty(batch, routes, length, channels) for _ in range(2))
    dB, dC = (scan.empty(channels // LANES, batch, routes, length, n_state) for _ in range(2))
    dA, dD, dbias = (torch.empty(batch, routes, *rest, channels) for rest in ((n_state,), (), ()))
    given = (_flat(filled(saved, channels)), dy, of_dy[:3], _flat(filled(end, channels).contiguous()))
    made = (dx, ddelta, dB, dC, dA, dD, dbias)
    share_out(
        compiled("selective_scan", "scan_backward"),
        scan.tasks,
        4 * scan.steps,
        scan.sizes,
        *scan.inputs,
        *given,
        *map(_flat, made),
    )
    dz = None if args.z is None or ungated is None else gate_gradient(args.z, dout.float(), ungated)
    by_route = dx[..., :used]
    return as_inputs(
        (
            by_route if args.x.dim() == 4 else _over_routes(by_route),
            ddelta[..., :used],
            dA[..., :used].sum(0).transpose(1, 2),
            dB.sum(0),
            dC.sum(0),
            dD[..., :used].sum(0),
            dz,
            dbias[..., :used].sum(0),
        ),
        args,
    )
