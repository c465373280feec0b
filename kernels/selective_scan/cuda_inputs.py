"""The scan's inputs as the CUDA kernels read them: any strides but one along channels or states."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmvision.kernels.selective_scan.args import ScanArgs
from ssmvision.kernels.selective_scan.cuda_programs import Stream

__all__ = ["Inputs", "as_stream", "inputs", "pairs_fit", "quads_fit", "rows_fit"]

# Strides of a row travel as 32-bit numbers of bytes.
MAX_ROW = 1 << 31


class Inputs(NamedTuple):
    """The op's inputs: x, delta, B, C and z in one dtype with dense rows, A, D and bias contiguous floats."""

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    bias: Tensor | None


def inputs(args: ScanArgs, *others: Tensor) -> Inputs:
    """The inputs, copied where dtype or layout ask for it.

    Args:
        args: of the op.
        others: tensors that take part in the common dtype.
    """
    walked = [t for t in (args.x, args.delta, args.B, args.C, args.z, *others) if t is not None]
    dtype = walked[0].dtype
    for t in walked:
        dtype = torch.promote_types(dtype, t.dtype)

    def exact(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.float().contiguous()

    x, delta, B, C = (_rows(t.to(dtype)) for t in (args.x, args.delta, args.B, args.C))
    z = None if args.z is None else _rows(args.z.to(dtype))
    return Inputs(x, delta, args.A.float().contiguous(), B, C, exact(args.D), z, exact(args.delta_bias))


def _rows(t: Tensor) -> Tensor:
    """The tensor itself if its last axis is dense and its rows are less than 2 GiB apart."""
    dense = t.shape[-1] == 1 or t.stride(-1) == 1
    return t if dense and t.stride(-2) * t.element_size() < MAX_ROW else t.contiguous()


def as_stream(t: Tensor | None) -> Stream:
    """Parameter block of a (B, L, C) or (B, K, L, C) tensor; one without routes is shared by them."""
    if t is None:
        return Stream()
    size = t.element_size()
    strides = t.stride() if t.dim() == 4 else (t.stride(0), 0, t.stride(1), 1)
    return Stream(t.data_ptr(), strides[0] * size, strides[1] * size, strides[2] * size)


def _aligned(t: Tensor, elements: int) -> bool:
    """Whether every row starts at a multiple of this many elements, in bytes."""
    if t.data_ptr() % (elements * t.element_size()):
        return False
    return all(size == 1 or stride % elements == 0 for size, stride in zip(t.shape[:-1], t.stride()[:-1], strict=True))


def pairs_fit(t: Inputs, walked: Tensor) -> bool:
    """Whether two neighbouring channels may be read and written at once."""
    streams = [v for v in (walked, t.x, t.delta, t.z) if v is not None]
    return t.delta.shape[-1] % 2 == 0 and all(_aligned(v, 2) for v in streams)


def rows_fit(t: Inputs, *others: Tensor) -> bool:
    """Whether rows of x, delta, z and `others` may be read 16 bytes at a time."""
    streams = [v for v in (t.x, t.delta, t.z, *others) if v is not None]
    elements = 16 // t.delta.element_size()
    return t.delta.shape[-1] % elements == 0 and all(_aligned(v, elements) for v in streams)


def quads_fit(t: Inputs) -> bool:
    """Whether B and C may be read 16 bytes at a time, 16 states at once."""
    return t.B.shape[-1] % 16 == 0 and all(_aligned(v, 16 // v.element_size()) for v in (t.B, t.C))
