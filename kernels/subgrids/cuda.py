"""CUDA backend: one launch each, compiled at run time from csrc/.

The convolution's gradients are the depthwise convolution's, the norm's are the reference's. Nothing is accumulated by
atomics, so two runs are bitwise equal.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.cuda.host import aligned, can_run, processors
from ssmvision.kernels.depthwise_conv import cuda as depthwise
from ssmvision.kernels.subgrids import reference
from ssmvision.kernels.subgrids.config import MAX_PACKS, columns_per_thread
from ssmvision.kernels.subgrids.cuda_programs import IO, Conv, Norm

__all__ = ["can_run", "conv_backward", "conv_forward", "norm_forward"]

THREADS, LANES = 128, 32


@lru_cache(maxsize=256)
def _kernel(name: str, device: int, dtype: torch.dtype, weight_dtype: torch.dtype, **defines: int) -> Kernel:
    """Kept here too, because finding a compiled variant by its definitions costs more than a launch."""
    return kernel(name, name, {"IO": IO[dtype], "WIO": IO[weight_dtype], **defines}, device)


def _dense(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def conv_forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve; takes and returns as `reference.conv_forward`."""
    if x.numel() == 0 or weight.dtype not in IO:
        return reference.conv_forward(x, weight, bias)
    x, weight, bias = _dense(x), weight.contiguous(), bias.to(weight.dtype).contiguous()
    batch, height, width, channels = x.shape
    rows, columns = (height + 1) // 2, (width + 1) // 2
    out = torch.empty(4, batch, rows, columns, channels, dtype=x.dtype, device=x.device)
    wide = aligned(x, out, weight.flatten(), bias)
    block = Conv(
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        out=out.data_ptr(),
        image=x.stride(0),
        line=x.stride(1),
        pixel=x.stride(2),
        batch=batch,
        H=height,
        W=width,
        E=channels,
    )
    lines = batch * 2 * rows * (channels // wide)
    strip = columns_per_thread(lines, 2 * columns, processors(x.device.index))
    threads = lines * -(-2 * columns // strip)
    compiled = _kernel("subgrid_conv", x.device.index, x.dtype, weight.dtype, V=wide, COLUMNS=strip)
    compiled.launch((-(-threads // THREADS), 1, 1), (THREADS, 1, 1), 0, None, (block,))
    return out


def conv_backward(x: Tensor, weight: Tensor, bias: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients; takes and returns as `reference.conv_backward`."""
    joined = reference.join_subgrids(dout.transpose(0, 1), (x.shape[1], x.shape[2]))
    dx, dweight, dbias = depthwise.backward(x, weight.squeeze(1), bias, True, joined)
    assert dbias is not None
    return dx, dweight.unsqueeze(1), dbias


def norm_forward(y: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """Norm and gate; takes and returns as `reference.norm_forward`."""
    gate, y = _dense(gate.to(y.dtype)), _grid_dense(y)
    weight, bias = weight.contiguous(), bias.to(weight.dtype).contiguous()
    wide = aligned(y, gate, weight, bias)
    packs = -(-y.shape[-1] // (LANES * wide))
    if y.numel() == 0 or weight.dtype not in IO or packs > MAX_PACKS:
        return reference.norm_forward(y, gate, weight, bias, eps, silu)
    batch, height, width, channels = gate.shape
    out = torch.empty(gate.shape, dtype=y.dtype, device=y.device)
    block = Norm(
        y=y.data_ptr(),
        gate=gate.data_ptr(),
        weight=weight.data_ptr(),
        bias=bias.data_ptr(),
        out=out.data_ptr(),
        y_image=y.stride(0),
        y_grid=y.stride(1),
        image=gate.stride(0),
        line=gate.stride(1),
        pixel=gate.stride(2),
        batch=batch,
        H=height,
        W=width,
        E=channels,
        eps=eps,
    )
    warps = batch * height * width
    compiled = _kernel("subgrid_norm", y.device.index, y.dtype, weight.dtype, V=wide, PACKS=packs, SILU=int(silu))
    compiled.launch((-(-warps * LANES // THREADS), 1, 1), (THREADS, 1, 1), 0, None, (block,))
    return out


def _grid_dense(y: Tensor) -> Tensor:
    """The tensor itself where every sub-grid is one block of memory."""
    _, _, _, w, channels = y.shape
    return y if y.stride()[2:] == (w * channels, channels, 1) else y.contiguous()
