"""The mixer's own kernels on CUDA: packing of the parameters, and the gate's backward."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ssmvision.kernels.cuda import Kernel, kernel
from ssmvision.kernels.mamba_mixer.args import Parameters
from ssmvision.kernels.mamba_mixer.cuda_programs import ENTRIES, IO, PACK_PER_BLOCK, Pack
from ssmvision.kernels.mamba_mixer.pack import Place, Plan, copy_parameters

__all__ = ["fill", "gate_backward"]

BLOCK = 256
VECTOR_BYTES = 16


@lru_cache(maxsize=64)
def _kernel(program: str, name: str, device: int, **defines: int) -> Kernel:
    return kernel(program, name, defines, device)


@lru_cache(maxsize=1024)
def _pack(sources: tuple[int, ...], places: tuple[Place, ...], element: int) -> tuple[Pack, int]:
    """The parameter block for parameters of this element size at these addresses, and its number of blocks."""
    todo = sorted(zip(places, sources, strict=True), key=lambda pair: (pair[0].exact, pair[0].exponential))
    pack, blocks = Pack(), 0
    for i, (place, source) in enumerate(todo):
        pack.source[i], pack.block[i] = source + element * place.start, blocks
        pack.offset[i], pack.count[i], pack.row[i], pack.stride[i] = place.offset, place.size, place.row, place.stride
        blocks += -(-place.size // PACK_PER_BLOCK)
    pack.entries = len(todo)
    pack.exact = sum(not place.exact for place in places)
    pack.exponential = sum(not place.exponential for place in places)
    return pack, blocks


def fill(p: Parameters, layout: Plan, low: Tensor, exact: Tensor) -> None:
    """As `pack.copy_parameters`, in one launch where all parameters have one dtype."""
    sources = layout.sources(p)
    dtype = sources[0].dtype
    one_dtype = dtype in IO and all(t.dtype == dtype and t.is_contiguous() for t in sources)
    if not one_dtype or len(sources) > ENTRIES:
        copy_parameters(p, layout, low, exact)
        return
    pack, blocks = _pack(tuple([t.data_ptr() for t in sources]), layout.places, dtype.itemsize)
    compiled = _kernel("mixer_pack", "pack", low.device.index, SRC=IO[dtype], IO=IO[low.dtype])
    compiled.launch((blocks, 1, 1), (BLOCK, 1, 1), 0, None, (pack, low, exact))


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
