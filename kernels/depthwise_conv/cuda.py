"""CUDA backend of the depthwise convolution, compiled at run time from csrc/.

Sums over positions are taken in a partition that depends on shapes and device only, in a fixed order, without atomics:
two runs are bitwise equal. A map is read in place wherever its stride along the channels is one.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.cuda.host import aligned, can_run, processors
from ssmvision.kernels.depthwise_conv import reference
from ssmvision.kernels.depthwise_conv.config import THREADS, Cut, cut
from ssmvision.kernels.depthwise_conv.cuda_programs import IO, Conv, Map

__all__ = ["backward", "can_run", "forward"]

SUM_THREADS, SUM_COLUMNS = 256, 32  # per block of depthwise_sum


@lru_cache(maxsize=256)
def _kernel(name: str, dtype: torch.dtype, side: int, channels: int, silu: bool, flip: bool, device: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    defines = {"IO": IO[dtype], "K": side, "V": channels, "SILU": int(silu), "FLIP": int(flip)}
    return kernel("depthwise_forward" if name == "depthwise_forward" else "depthwise_backward", name, defines, device)


def _readable(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def _map(t: Tensor) -> Map:
    return Map(t.data_ptr(), *t.stride()[:3])


def _cut(x: Tensor, channels: int) -> Cut:
    batch, height, width, total = x.shape
    return cut(batch, height, width, -(-total // channels), processors(x.device.index))


def _block(x: Tensor, out: Tensor, weight: Tensor, bias: Tensor | None, sizes: Cut) -> Conv:
    """The parameter block of either kernel."""
    batch, height, width, channels = x.shape
    return Conv(
        x=_map(x),
        out=_map(out),
        weight=weight.data_ptr(),
        bias=None if bias is None else bias.data_ptr(),
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        units=sizes.units,
        strip=sizes.strip,
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, flip: bool) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    channels = aligned(x, out)
    sizes = _cut(x, channels)
    compiled = _kernel("depthwise_forward", x.dtype, weight.shape[-1], channels, silu, flip, x.device.index)
    compiled.launch(sizes.blocks, (THREADS, 1, 1), 0, None, (_block(x, out, weight, bias, sizes),))
    return out


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Convolve; takes and returns as `reference.forward`."""
    if x.numel() == 0:
        return reference.forward(x, weight, bias, silu)
    offset = None if bias is None else bias.float().contiguous()
    return _convolve(_readable(x), weight.float().contiguous(), offset, silu, False)


def backward(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients; takes and returns as `reference.backward`."""
    if x.numel() == 0:
        return reference.backward(x, weight, bias, silu, dout)
    x, dout = _readable(x), _readable(dout.to(x.dtype))
    taps = weight.float().contiguous()
    offset = None if bias is None else bias.float().contiguous()
    dpre, dweight, dbias = _sums(x, taps, offset, silu, dout)
    dx = _convolve(dpre, taps, None, False, True)
    return dx, dweight.to(weight.dtype), None if bias is None or dbias is None else dbias.to(bias.dtype)


def _sums(
    x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, dout: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradient of the result before SiLU, and of taps and bias; a pass leaves parts of sums, a second adds them."""
    dpre = torch.empty(x.shape, dtype=x.dtype, device=x.device) if silu else dout
    channels = aligned(x, dout, dpre)
    sizes, side, total = _cut(x, channels), weight.shape[-1], x.shape[-1]
    block = _block(x, dout, weight, bias, sizes)
    rows = sizes.blocks[0] * sizes.blocks[2]
    partial = torch.empty(rows, side * side + 1, total, device=x.device)
    block.dpre, block.partial = _map(dpre), partial.data_ptr()
    variant = (x.dtype, side, channels, silu, False, x.device.index)
    _kernel("depthwise_backward", *variant).launch(sizes.blocks, (THREADS, 1, 1), 0, None, (block,))
    dweight, dbias = torch.empty_like(weight), None if bias is None else torch.empty_like(bias)
    blocks = (-(-(side * side + 1) * total // SUM_COLUMNS), 1, 1)
    args = (partial, dweight, dbias, rows, total)
    _kernel("depthwise_sum", *variant).launch(blocks, (SUM_THREADS, 1, 1), 0, None, args)
    return dpre, dweight, dbias
