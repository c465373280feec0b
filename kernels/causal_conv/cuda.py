"""CUDA backend: every direction in one launch, compiled at run time from csrc/.

Sums over tokens are taken in a partition that depends on shapes and device only, in a fixed order, without atomics:
two runs are bitwise equal. Tensors are read and written in place wherever their stride along E is one.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.causal_conv import reference
from ssmvision.kernels.causal_conv.config import THREADS, backward_strips, channels_per_thread, forward_strip
from ssmvision.kernels.causal_conv.cuda_programs import IO, Conv, Rows
from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.cuda.host import aligned, can_run, processors

__all__ = ["backward", "can_run", "forward"]

SUM_THREADS, SUM_COLUMNS = 256, 32  # per block of conv_sum
MAX_ROW_STRIDE = 1 << 31
WEIGHT_ALIGNMENT = 16


@lru_cache(maxsize=256)
def _kernel(
    name: str,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    routes: tuple[str, ...],
    taps: int,
    channels: int,
    silu: bool,
    device: int,
) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    defines = {
        "IO": IO[dtype],
        "WIO": IO[weight_dtype],
        "K": len(routes),
        "REVERSE": sum(1 << k for k, route in enumerate(routes) if route == "backward"),
        "W": taps,
        "V": channels,
        "SILU": int(silu),
    }
    return kernel("conv_forward" if name == "conv_forward" else "conv_backward", name, defines, device)


def _in_place(t: Tensor) -> bool:
    return t.stride(-1) == 1 and t.stride(-2) < MAX_ROW_STRIDE


def _readable(t: Tensor) -> Tensor:
    return t if _in_place(t) else t.contiguous()


def _writable(name: str, t: Tensor) -> Tensor:
    if not _in_place(t):
        raise ValueError(f"{name} must have stride 1 along E and a row stride below 2^31, got strides {t.stride()}")
    return t


def _weights(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Contiguous, of one dtype (float32, or the tokens' own), the weights where several can be read at once."""
    wanted = weight.dtype if weight.dtype == dtype and (bias is None or bias.dtype == dtype) else torch.float32
    weight = weight.to(wanted).contiguous()
    if weight.data_ptr() % WEIGHT_ALIGNMENT:
        weight = weight.clone()
    return weight, None if bias is None else bias.to(wanted).contiguous()


def _rows(t: Tensor) -> Rows:
    """Where a (B, L, E) or (B, K, L, E) lies."""
    strides = t.stride()
    return Rows(t.data_ptr(), strides[0], strides[1] if len(strides) == 4 else 0, strides[-2])


def _block(x: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None, strip: int, steps: int) -> Conv:
    """The parameter block of either kernel, for strips of so many of the walked tokens."""
    batch, length, channels = x.shape
    return Conv(
        x=_rows(x),
        out=_rows(out),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        batch=batch,
        L=length,
        E=channels,
        strip=strip,
        strips=-(-steps // strip),
    )


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routes: tuple[str, ...],
    silu: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve; takes and returns as `reference.forward`, `out` with unit stride along E.

    Raises:
        ValueError: `out` cannot be written in place.
    """
    batch, length, channels = x.shape
    if out is None:
        out = x.new_empty(batch, len(routes), length, channels)
    if x.numel() == 0:
        return out
    x, out = _readable(x), _writable("out", out)
    weight, bias = _weights(weight, bias, x.dtype)
    device, taps = x.device.index, weight.shape[2]
    width = channels_per_thread(len(routes), taps, aligned(x, out))
    steps = length + (taps - 1 if "forward" in routes and "backward" in routes else 0)
    threads = batch * (channels // width)
    block = _block(x, out, weight, bias, forward_strip(threads, steps, processors(device)), steps)
    compiled = _kernel("conv_forward", x.dtype, weight.dtype, routes, taps, width, silu, device)
    compiled.launch((-(-threads * block.strips // THREADS), 1, 1), (THREADS, 1, 1), 0, None, (block,))
    return out


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routes: tuple[str, ...],
    silu: bool,
    dout: Tensor,
    dx: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients; takes and returns as `reference.backward`, `dx` with unit stride along E.

    Raises:
        ValueError: `dx` cannot be written in place.
    """
    if x.numel() == 0:
        return reference.backward(x, weight, bias, routes, silu, dout, dx)
    dx = x.new_empty(x.shape) if dx is None else _writable("dx", dx)
    x, dout = _readable(x), _readable(dout.to(x.dtype))
    bias_dtype = weight.dtype if bias is None else bias.dtype
    dweight, dbias = _launch_backward(x, *_weights(weight, bias, x.dtype), routes, silu, dout, dx)
    return dx, dweight.to(weight.dtype), None if dbias is None else dbias.to(bias_dtype)


def _launch_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    routes: tuple[str, ...],
    silu: bool,
    dout: Tensor,
    dx: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Writes dx; returns dweight and dbias. A pass leaves a part of their sums for each block, a second adds them."""
    batch, length, channels = x.shape
    device, (n_routes, _, taps) = x.device.index, weight.shape
    width = channels_per_thread(n_routes, taps, aligned(x, dout, dx), backward=True)
    tiles = -(-channels // (32 * width))
    strip, warps = backward_strips(batch * tiles, length, processors(device))
    block = _block(x, dout, weight, bias, strip, length)
    stacks = batch * -(-block.strips // warps)
    partial = torch.empty(stacks, n_routes, taps + 1, channels, device=x.device)
    block.dx, block.partial, block.tiles = _rows(dx), partial.data_ptr(), tiles
    variant = (x.dtype, weight.dtype, routes, taps, width, silu, device)
    _kernel("conv_backward", *variant).launch((tiles * stacks, 1, 1), (32 * warps, 1, 1), 0, None, (block,))

    dweight, dbias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    columns = n_routes * (taps + 1) * channels
    args = (partial, dweight, dbias, stacks, channels, columns)
    _kernel("conv_sum", *variant).launch((-(-columns // SUM_COLUMNS), 1, 1), (SUM_THREADS, 1, 1), 0, None, args)
    return dweight, dbias
