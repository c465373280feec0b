"""3D backend: two axes a launch, in Triton, where a plane and the matrices of its axes fit into shared memory.

Forward: the planes (y, x), then z with the skip. Backward: the same result with z first, so that the pass over planes
has the input of both of its axes, and the one over z the gradient behind them; what lies between is computed again.
Nothing is accumulated by atomics, so two runs are bitwise equal. Importing this module does not import triton.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.registry import Request
from ssmvision.kernels.s4nd.args import ConvArgs, ConvRequest, Grads
from ssmvision.kernels.s4nd.volume_config import (
    LAGS,
    LONGEST,
    VECTOR,
    longest_axis,
    padded,
    parts_of,
    tile_config,
)
from ssmvision.kernels.selective_scan import triton

__all__ = ["NAME", "backward", "can_run", "forward"]

NAME = "triton"


def can_run(request: Request) -> str | None:
    """Why the request cannot run here, or None."""
    if not request.device.startswith("cuda") or torch.version.hip is not None:
        return f"{request.device} is not an NVIDIA GPU"
    if not isinstance(request, ConvRequest) or not request.grid:
        return triton.can_run(request)
    if len(request.grid) != 3:
        return f"is for volumes, this is {len(request.grid)}D"
    if request.rank > 1 or request.channels > 1 or request.dense:
        return "is for one kernel a feature: rank 1, one channel, not dense"
    if request.dtype == torch.float64 or request.precision not in ("bf16", *_automatic(request.dtype)):
        return f"computes in bfloat16, this is {request.dtype} with precision={request.precision!r}"
    if max(request.grid) > LONGEST:
        return f"an axis of {max(request.grid)} is longer than {LONGEST}, whose matrix fits into shared memory"
    return triton.can_run(request) or _memory_reason(request)


def _automatic(dtype: torch.dtype) -> tuple[str, ...]:
    """What the precision may also be called where "auto" means bfloat16, see `compute_dtype`."""
    return ("auto",) if dtype == torch.bfloat16 else ()


def _memory_reason(request: ConvRequest) -> str | None:
    granted = _shared_bytes(torch.device(request.device))
    if max(request.grid) > longest_axis(granted):
        return f"an axis of {max(request.grid)} needs more shared memory than a block's {granted:,} bytes"
    return None


def _kernel(name: str) -> Any:
    """A kernel by its name; imports triton at the first call."""
    return getattr(import_module("ssmvision.kernels.s4nd.volume_kernels"), name)


@cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a block may have."""
    properties = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)  # type: ignore[attr-defined]


class _Axis(NamedTuple):
    """Kernels (H, T) of an axis, where their lag 0 is, and the axis' size."""

    taps: Tensor
    center: int
    length: int

    @property
    def size(self) -> int:
        return padded(self.length)


class _Volume(NamedTuple):
    """A call's inputs, and room for its result.

    Attributes:
        u, out: (B, H, z, y, x), contiguous, of one dtype.
        rounded: u in bfloat16; u itself if it is.
        between: what lies between the passes, in bfloat16: the memory of `rounded` if that is a copy, else of `out`.
        axes: of z, y and x.
        weight: (H,) of the skip.
    """

    u: Tensor
    out: Tensor
    rounded: Tensor
    between: Tensor
    axes: tuple[_Axis, ...]
    weight: Tensor | None

    @property
    def area(self) -> int:
        return self.axes[1].length * self.axes[2].length

    def plane_sizes(self) -> dict[str, Any]:
        """What both kernels over planes ask for."""
        z, y, x = self.axes
        full = (y.length, x.length) == (y.size, x.size)
        lengths = {"depth": z.length, "ly": y.length, "lx": x.length, "items": self.u.shape[0] * z.length}
        return {
            **_taps("_y", y),
            **_taps("_x", x),
            **lengths,
            "Y": y.size,
            "X": x.size,
            "FULL": full,
            "WHOLE": gcd(x.length, VECTOR),
        }

    def column_sizes(self, tile: int) -> dict[str, Any]:
        """What both kernels along z ask for."""
        z = self.axes[0]
        full = z.length == z.size and self.area % tile == 0
        lengths = {"depth": z.length, "area": self.area, "items": self.u.shape[0] * -(-self.area // tile)}
        return {**_taps("", z), **lengths, "Z": z.size, "N": tile, "FULL": full, "WHOLE": gcd(self.area, VECTOR)}


def _taps(suffix: str, axis: _Axis) -> dict[str, int]:
    return {f"center{suffix}": axis.center, f"taps{suffix}": axis.taps.shape[-1]}


def _volume(args: ConvArgs) -> _Volume:
    kernels = (kernel[0, 0].contiguous() for kernel in args.kernels)
    axes = tuple(_Axis(*axis) for axis in zip(kernels, args.centers, args.grid, strict=True))
    u = args.u.contiguous()
    out, rounded = torch.empty_like(u), u.to(torch.bfloat16)
    weight = None if args.D is None else args.D[0].contiguous()
    return _Volume(u, out, rounded, out if rounded is u else rounded, axes, weight)


class _Launch:
    """A kernel's settings for a volume."""

    def __init__(self, v: _Volume, name: str) -> None:
        self._volume = v
        planes, features = name.startswith("planes"), v.u.shape[1]
        size = max(axis.size for axis in (v.axes[1:] if planes else v.axes[:1]))
        config = tile_config(name, size, v.u.element_size(), _shared_bytes(v.u.device))
        sizes = v.plane_sizes() if planes else v.column_sizes(config.columns)
        self.parts = parts_of(features, sizes["items"], _processors(v.u.device) * config.blocks)
        self.programs = features * self.parts
        self._kernel = _kernel(name)
        self._options = {**sizes, "features": features, "parts": self.parts, "STAGES": config.stages}
        self._warps = config.warps

    def room(self, axis: _Axis) -> Tensor:
        """For each program's part of the gradient of an axis' matrices, (H, parts, L, L)."""
        u = self._volume.u
        return u.new_empty(u.shape[1], self.parts, axis.size, axis.size, dtype=torch.float32)

    def __call__(self, *tensors: Tensor | None, **options: bool) -> None:
        self._kernel[(self.programs,)](*tensors, **options, **self._options, num_warps=self._warps)


def forward(args: ConvArgs) -> Tensor:
    """See `long_conv_nd`; the result has u's dtype."""
    v = _volume(args)
    z, y, x = (axis.taps for axis in v.axes)
    with torch.accelerator.device_index(v.u.device.index):
        _Launch(v, "planes")(v.rounded, v.between, y, x, TRANSPOSED=False)
        _Launch(v, "columns")(v.between, v.u, v.out, z, v.weight)
    return v.out.view(args.out_shape)


def backward(args: ConvArgs, dout: Tensor, need_u: bool, need_kernels: bool) -> Grads:
    """Gradients of the inputs; the kernels' and the skip's in float32."""
    v = _volume(args)
    dy = dout.reshape(v.u.shape).to(v.u.dtype).contiguous()
    z, y, x = (axis.taps for axis in v.axes)
    with torch.accelerator.device_index(v.u.device.index):
        columns = _Launch(v, "columns_backward")
        d_z, d_weight = columns.room(v.axes[0]), v.u.new_empty(v.u.shape[1], columns.parts, dtype=torch.float32)
        if need_kernels:
            _Launch(v, "columns")(v.rounded, v.u, v.between, z, None)
            planes = _Launch(v, "planes_backward")
            d_y, d_x = (planes.room(axis) for axis in v.axes[1:])
            planes(dy.to(torch.bfloat16), v.between, v.between, y, x, d_y, d_x)
        else:
            _Launch(v, "planes")(dy.to(torch.bfloat16), v.between, y, x, TRANSPOSED=True)
        columns(v.between, v.u, dy, v.out, z, v.weight, d_z, None if v.weight is None else d_weight)
        d_kernels = _sums(v, d_z, d_y, d_x) if need_kernels else None
    return Grads(v.out if need_u else None, d_kernels, None if v.weight is None else d_weight.sum(1)[None])


def _sums(v: _Volume, *d_matrices: Tensor) -> tuple[Tensor, ...]:
    """Gradients (1, 1, H, T) of the kernels from the programs' parts (H, parts, L, L) of their matrices' ones."""
    out = tuple(d_matrices[0].new_empty(1, 1, *axis.taps.shape) for axis in v.axes)
    sizes: dict[str, int] = {"column_parts": d_matrices[0].shape[1], "plane_parts": d_matrices[1].shape[1]}
    for name, axis in zip("zyx", v.axes, strict=True):
        sizes |= {**_taps(f"_{name}", axis), name.upper(): axis.size}
    blocks = sum(-(-axis.taps.shape[1] // LAGS) for axis in v.axes)
    _kernel("diagonals")[(v.u.shape[1], blocks)](*d_matrices, *out, **sizes, LAGS=LAGS)
    return out
