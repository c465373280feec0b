"""Fixed position codes that fit maps of any size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["SinCosPosition", "sincos_position"]

# A map spans so many units at any size: about the patches of a side at which such codes are usually trained.
SPAN = 16.0
PERIOD = 10_000.0


def sincos_position(
    grid: Sequence[int], dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Sines and cosines of every position, each axis with its share of the channels.

    The code of Vaswani et al. (arXiv 1706.03762, section 3.5), once for each axis, at the middles of the cells of a map
    that is 16 units long whatever its size: a map at twice the resolution is coded between the positions of the first.

    Args:
        grid: sizes of the axes.
        dim: channels; those left over where they are not a multiple of twice the axes are 0.
        device, dtype: of the result; computed in at least float32.

    Returns:
        (*grid, dim).
    """
    frequencies = dim // (2 * len(grid))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    steps = torch.arange(frequencies, device=device, dtype=wide) / max(frequencies, 1)
    omega = PERIOD**-steps
    codes = []
    for axis, size in enumerate(grid):
        places = (torch.arange(size, device=device, dtype=wide) + 0.5) * (SPAN / size)
        angles = places[:, None] * omega
        code = torch.cat((angles.sin(), angles.cos()), 1)
        shape = [1] * len(grid) + [2 * frequencies]
        shape[axis] = size
        codes.append(code.view(shape).expand(*grid, -1))
    rest = dim - 2 * frequencies * len(grid)
    if rest:
        codes.append(torch.zeros((1,) * len(grid) + (rest,), device=device, dtype=wide).expand(*grid, -1))
    return torch.cat(codes, -1).to(dtype or wide)


def _is_recorded(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


class SinCosPosition(nn.Module):
    """Adds `sincos_position` to a map; keeps the code of the last size, and those that a CUDA graph reads.

    Shape:
        (B, *grid, C) -> the same.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kept: tuple[tuple[object, ...], Tensor] | None = None
        self._recorded: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x + self._code(x)

    def _code(self, x: Tensor) -> Tensor:
        grid, dim = x.shape[1:-1], x.shape[-1]
        if torch.compiler.is_compiling():
            return sincos_position(grid, dim, x.device, x.dtype)
        key = (tuple(grid), dim, x.device, x.dtype)
        if self._kept is None or self._kept[0] != key:
            with torch.inference_mode(False):  # what is kept may be met by autograd later
                self._kept = (key, sincos_position(grid, dim, x.device, x.dtype))
        if _is_recorded(x):
            self._recorded.append(self._kept[1])  # read by every replay, also once another size has been met
        return self._kept[1]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_kept": None, "_recorded": []}
