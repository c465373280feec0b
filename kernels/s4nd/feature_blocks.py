"""The separable engine on a CPU: a few features at a time through all axes, so that all they need stays in the cache.

For one kernel a feature (rank 1, one channel), as in most networks; the products write where their results belong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmvision.kernels.s4nd.args import ConvArgs, Grads, compute_dtype
from ssmvision.kernels.s4nd.config import toeplitz_config
from ssmvision.kernels.s4nd.matrices import diagonal_sums, toeplitz
from ssmvision.kernels.s4nd.products import FEW, matrix_gradient, multiply, multiply_back

__all__ = ["applies", "backward", "forward"]


def applies(args: ConvArgs) -> bool:
    """Whether this form computes the call: on a CPU, one kernel a feature, maps in the dtype of the products."""
    rank, channels, *_ = args.kernels[0].shape
    volume = math.prod(args.grid)
    columns = volume // max(args.grid) if volume else 0
    one = rank == channels == 1 and not args.dense and len(args.grid) > 1 and columns >= FEW
    return one and args.u.device.type == "cpu" and compute_dtype(args.u, args.precision) == args.u.dtype


@dataclass(frozen=True)
class _Block:
    """Some features of a call.

    Attributes:
        features: which.
        u: (B, N, *grid), a slice of contiguous maps.
        matrices: (N, L, L) of each axis.
        scratch: room for a map each, two for every pass but one; fresh memory would cost more than the products.
    """

    features: slice
    u: Tensor
    matrices: tuple[Tensor, ...]
    scratch: tuple[Tensor, ...]

    def room(self, index: int, *shape: int) -> Tensor:
        """One of the scratch maps in a shape."""
        return self.scratch[index][: math.prod(shape)].view(shape)

    def inputs(self) -> list[Tensor]:
        """Inputs of the passes, the last axis' first: (B, N, M, L) each."""
        batch, features, *grid = self.u.shape
        volume = math.prod(grid)
        inputs = [self.u.view(batch, features, volume // grid[-1], grid[-1])]
        for a in range(len(grid) - 1, 0, -1):
            room = self.room(a - 1, batch, features, grid[a], volume // grid[a])
            x = multiply(self.matrices[a], inputs[-1], room)
            inputs.append(x.view(batch, features, volume // grid[a - 1], grid[a - 1]))
        return inputs


def _blocks(args: ConvArgs) -> Iterator[_Block]:
    grid, features = args.grid, args.u.shape[1]
    maps = (len(grid) + 1) * math.prod(grid) + sum(length**2 for length in grid)
    held = toeplitz_config("cpu").cached_elements * 4 // args.u.element_size()
    step = min(max(held // maps, toeplitz_config("cpu").fewest_features), features)
    u, room = args.u.contiguous(), args.u.shape[0] * step * math.prod(grid)
    scratch = tuple(args.u.new_empty(room) for _ in range(2 * len(grid) - 2))
    for start in range(0, features, step):
        which = slice(start, start + step)
        axes = zip(args.kernels, args.centers, grid, strict=True)
        matrices = tuple(
            toeplitz(kernel[0, 0, which].to(args.u.dtype), center, length) for kernel, center, length in axes
        )
        yield _Block(which, u[:, which], matrices, scratch)


def forward(args: ConvArgs) -> Tensor:
    """See `long_conv_nd`."""
    batch, features, first, *_ = args.u.shape
    y = torch.empty_like(args.u, memory_format=torch.contiguous_format)
    rows = y.view(batch, features, first, -1)
    skip = None if args.D is None else args.D.to(y.dtype).view(features, *(1,) * len(args.grid))
    for block in _blocks(args):
        multiply(block.matrices[0], block.inputs()[-1], rows[:, block.features])
        if skip is not None:
            y[:, block.features].addcmul_(block.u, skip[block.features])
    return y.unsqueeze(1)


def backward(args: ConvArgs, dout: Tensor, need_u: bool, need_kernels: bool) -> Grads:
    """Gradients of the inputs; what lies between the passes is computed again."""
    dout = dout.to(args.u.dtype).reshape(args.u.shape).contiguous()
    du = torch.empty_like(args.u, memory_format=torch.contiguous_format) if need_u else None
    found: list[list[Tensor]] = [[] for _ in args.grid]
    skips: list[Tensor] = []
    weight = None if args.D is None else args.D.to(dout.dtype).view(-1, *(1,) * len(args.grid))
    for block in _blocks(args):
        dy, place = dout[:, block.features], None if du is None else du[:, block.features]
        if need_u or need_kernels:
            _block_backward(block, dy, place, found if need_kernels else None)
        if weight is not None:
            if place is not None:
                place.addcmul_(dy, weight[block.features])
            skips.append((dy * block.u).flatten(2).sum((0, 2)))
    d_kernels = None
    if need_kernels:
        axes = zip(found, args.centers, args.kernels, strict=True)
        d_kernels = tuple(
            diagonal_sums(torch.cat(parts), center, kernel.shape[-1])[None, None] for parts, center, kernel in axes
        )
    return Grads(du, d_kernels, torch.cat(skips)[None] if skips else None)


def _block_backward(block: _Block, dy: Tensor, du: Tensor | None, found: list[list[Tensor]] | None) -> None:
    """Adds each axis' gradient of the matrices (N, L, L) to `found` and writes that of the block's input to `du`."""
    batch, features, *grid = block.u.shape
    volume, inputs = math.prod(grid), block.inputs()
    for a, matrices in enumerate(block.matrices):
        dy = dy.view(batch, features, grid[a], volume // grid[a])
        if found is not None:
            found[a].append(matrix_gradient(dy, inputs[len(grid) - 1 - a]))
        if a < len(grid) - 1:
            room = block.room(len(grid) - 1 + a, batch, features, volume // grid[a], grid[a])
            dy = multiply_back(matrices, dy, room)
        elif du is not None:
            multiply_back(matrices, dy, du.view(batch, features, volume // grid[a], grid[a]))
