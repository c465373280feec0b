"""The mixer's own kernels on CUDA: packing of the parameters, and the gate's backward."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.mamba_mixer.cuda_programs import ENTRIES, IO, Pack
from ssmvision.kernels.mamba_mixer.pack import Entry, copy_entries

__all__ = ["fill", "gate_backward"]

BLOCK = 256
VECTOR_BYTES = 16
PACK_BLOCKS = 128  # an entry; the largest has half a million elements in a small Vim


@lru_cache(maxsize=64)
def _kernel(program: str, name: str, device: int, **defines: int) -> Kernel:
    return kernel(program, name, defines, device)


def _one_launch(todo: list[Entry], low: Tensor) -> bool:
    dtype = todo[0].source.dtype
    known = dtype in IO and low.dtype in IO and len(todo) <= ENTRIES
    return known and all(e.source.dtype == dtype and e.source.is_contiguous() for e in todo)


def fill(todo: list[Entry], low: Tensor, exact: Tensor) -> None:
    """As `pack.copy_entries`, in one launch where all parameters have one dtype."""
    if not _one_launch(todo, low):
        copy_entries(todo, low, exact)
        return
    todo = sorted(todo, key=lambda e: (e.exact, e.exponential))
    block = Pack()
    block.exact = sum(not e.exact for e in todo)
    block.exponential = sum(not e.exponential for e in todo)
    sources, places, counts = block.source, block.to, block.count
    starts = (low.data_ptr(), exact.data_ptr())
    sizes = (low.element_size(), exact.element_size())
    for i, e in enumerate(todo):
        sources[i] = e.source.data_ptr()
        places[i] = starts[e.exact] + sizes[e.exact] * e.offset
        counts[i] = e.source.numel()
    pack = _kernel("mixer_pack", "pack", low.device.index, SRC=IO[todo[0].source.dtype], IO=IO[low.dtype])
    pack.launch((PACK_BLOCKS, len(todo), 1), (BLOCK, 1, 1), 0, None, (block,))


def _vector(channels: int, *tensors: Tensor) -> int:
    """Channels a thread may read and write at once."""
    size = tensors[0].element_size()
    wanted = VECTOR_BYTES // size
    fits = channels % wanted == 0 and all(t.stride(-2) % wanted == 0 for t in tensors)
    return wanted if fits and all(t.data_ptr() % VECTOR_BYTES == 0 for t in tensors) else 1


def gate_backward(dout: Tensor, z: Tensor, y: Tensor, dz: Tensor) -> tuple[Tensor, Tensor]:
    """As `reference.gate_backward`; dy takes dout's place."""
    channels, total = dout.shape[-1], dout.numel()
    out = torch.empty_like(y)
    if total == 0:
        return dout, out
    vec = _vector(channels, dout, z, y, dz, out)
    launch = _kernel("mixer_gate", "gate_backward", dout.device.index, IO=IO[dout.dtype], VEC=vec).launch
    rows = (total // vec, channels // vec, z.stride(-2) // vec, dz.stride(-2) // vec)
    blocks = min(-(-rows[0] // BLOCK), 1 << 20)
    launch((blocks, 1, 1), (BLOCK, 1, 1), 0, None, (dout, z, y, dz, out, *rows))
    return dout, out
