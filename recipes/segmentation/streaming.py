"""Overlapping windows put together in order, so that memory follows the window and not the whole volume.

Each voxel's sums are complete once the last window over it is done. Windows run in the order of three nested loops;
what is complete is handed out at once, and only what later windows still touch is kept. The sums are those of
MONAI's sliding windows over a volume with the axes in that order, in the same order of additions, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Block", "WindowGrid", "stream_labels", "stream_logits"]

SIGMA_SCALE = 0.125
FLOAT32_BYTES = 4
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Block:
    """Logits (K, x, y, z) float32 of a box of voxels that no later window touches, and its first voxel."""

    start: Triple
    logits: Tensor

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """The voxels' indices."""
        x, y, z = (slice(first, first + n) for first, n in zip(self.start, self.logits.shape[1:], strict=True))
        return x, y, z


@dataclass(frozen=True)
class WindowGrid:
    """Places of the windows over a volume and the order in which they run.

    Args:
        shape: voxels of the volume, padded to at least one window.
        window: voxels of a window; 1 along an axis that a 2D network does not see.
        starts: first voxels of the windows, per axis; the last window ends with the volume.
        order: the axes from the outermost loop to the innermost.
    """

    shape: Triple
    window: Triple
    starts: tuple[tuple[int, ...], ...]
    order: Triple

    @classmethod
    def over(cls, shape: Sequence[int], patch_size: Sequence[int], overlap: float) -> WindowGrid:
        """Windows overlapping by a share of the patch, in the order that keeps the fewest sums.

        Args:
            shape: (X, Y, Z) of the volume.
            patch_size: three sizes, or two for a network that takes slices along the last axis.
            overlap: share of the patch in [0, 1).
        """
        window = cast(Triple, (*patch_size, *([1] * (3 - len(patch_size)))))
        padded = cast(Triple, tuple(max(n, edge) for n, edge in zip(shape, window, strict=True)))
        starts = tuple(_starts(n, edge, overlap) for n, edge in zip(padded, window, strict=True))
        grids = [cls(padded, window, starts, cast(Triple, order)) for order in itertools.permutations(range(3))]
        return min(grids, key=lambda grid: grid.kept_voxels)

    @property
    def count(self) -> int:
        """Number of windows."""
        a, b, c = (len(starts) for starts in self.starts)
        return a * b * c

    def step(self, axis: int, i: int) -> int:
        """Voxels along an axis that are complete after its i-th window: up to the next one, or all that are left."""
        starts = self.starts[axis]
        return starts[i + 1] - starts[i] if i + 1 < len(starts) else self.shape[axis] - starts[i]

    def kept(self, axis: int) -> int:
        """Voxels along an axis, at most, that one window shares with the next."""
        steps = (self.step(axis, i) for i in range(len(self.starts[axis]) - 1))
        return self.window[axis] - min(steps, default=self.window[axis])

    @property
    def kept_voxels(self) -> int:
        """Voxels, at most, whose sums are held at a time."""
        a, b, c = self.order
        rest = self.kept(a) * self.shape[b] + self.window[a] * self.kept(b)
        return rest * self.shape[c] + self.window[a] * self.window[b] * self.window[c]

    def kept_bytes(self, classes: int) -> int:
        """Bytes of those sums: one float32 per class and one for the weights."""
        return (classes + 1) * self.kept_voxels * FLOAT32_BYTES

    def places(self) -> Iterator[Triple]:
        """Number of each window along the axes in loop order, as the loops run."""
        yield from itertools.product(*(range(len(self.starts[axis])) for axis in self.order))


def _starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    stride = window if size == window else max(int(window * (1 - overlap)), 1)
    count = -(-(size - window) // stride) + 1
    return tuple(min(i * stride, size - window) for i in range(count))


class Accumulator:
    """Weighted sums over windows; all tensors have the axes (class, a, b, c) in the grid's loop order.

    The last of the K + 1 classes is the sum of the weights. Three stores hold what later windows touch: `_current` the
    window itself, `_rows` what the next row of windows along b shares with this one, `_planes` the same along a.

    Args:
        grid: the windows.
        weight: (a, b, c) float32 weights of a window's voxels.
        device: of the sums.
    """

    def __init__(self, grid: WindowGrid, weight: Tensor, device: torch.device) -> None:
        self.grid, self.device = grid, device
        self.weight = weight
        self._size = [grid.shape[axis] for axis in grid.order]
        self._window = [grid.window[axis] for axis in grid.order]
        self._stores: tuple[Tensor, Tensor] | None = None
        self._current: Tensor | None = None

    def add(self, logits: Tensor, place: Triple) -> Block:
        """Adds a window's logits (K, a, b, c), which are overwritten; returns what became complete (maybe nothing)."""
        k, c = place[2], self._window[2]
        start, done = self._start(2, k), self._step(2, k)
        if self._stores is None:
            self._stores = self._allocate(len(logits))
        current = self._load(place, start, start + c) if k == 0 else cast(Tensor, self._current)
        logits *= self.weight
        current[:-1] += logits.to(self.device)
        current[-1] += self.weight.to(self.device)
        block = self._retire(current[..., :done], place, start)
        if start + c < self._size[2]:
            fresh = self._load(place, start + c, start + c + done)
            # Shifting one class at a time needs little room beside the window itself.
            for values, new in zip(current, fresh, strict=True):
                values[..., : c - done] = values[..., done:].clone()
                values[..., c - done :] = new
        self._current = current
        return block

    def _allocate(self, classes: int) -> tuple[Tensor, Tensor]:
        first, second, _ = self.grid.order
        a, _, _ = self._window
        _, width, length = self._size
        planes = self._zeros(classes + 1, self.grid.kept(first), width, length)
        return planes, self._zeros(classes + 1, a, self.grid.kept(second), length)

    def _zeros(self, classes: int, *sizes: int) -> Tensor:
        # In memory the axes lie as in the windows: one pass over both then reads and writes in sequence.
        stored = [sizes[self.grid.order.index(axis)] for axis in range(3)]
        return torch.zeros(classes, *stored, device=self.device).permute(0, *(1 + axis for axis in self.grid.order))

    def _load(self, place: Triple, first: int, last: int) -> Tensor:
        """Sums so far over the columns [first, last) along c of the window's row."""
        i, j, _ = place
        a, b, _ = self._window
        planes, rows = cast(tuple[Tensor, Tensor], self._stores)
        row = self._start(1, j)
        old_a = a - self._step(0, i - 1) if i else 0
        old_b = b - self._step(1, j - 1) if j else 0
        sums = self._zeros(len(planes), a, b, last - first)
        sums[:, :, :old_b] = rows[:, :, :old_b, first:last]
        sums[:, :old_a, old_b:] = planes[:, :old_a, row + old_b : row + b, first:last]
        return sums

    def _retire(self, sums: Tensor, place: Triple, first: int) -> Block:
        """Stores finished columns for the next row and the next plane of windows; returns what is complete."""
        i, j, _ = place
        planes, rows = cast(tuple[Tensor, Tensor], self._stores)
        a, b, _ = self._window
        done_a, done_b, row, last = self._step(0, i), self._step(1, j), self._start(1, j), first + sums.shape[3]
        rows[:, :, : b - done_b, first:last] = sums[:, :, done_b:]
        planes[:, : a - done_a, row : row + done_b, first:last] = sums[:, done_a:, :done_b]
        complete = sums[:, :done_a, :done_b]
        place_in_order = dict(zip(self.grid.order, (self._start(0, i), row, first), strict=True))
        back = [1 + self.grid.order.index(axis) for axis in range(3)]
        logits = (complete[:-1] / complete[-1:]).permute(0, *back)
        return Block((place_in_order[0], place_in_order[1], place_in_order[2]), logits)

    def _start(self, level: int, i: int) -> int:
        return self.grid.starts[self.grid.order[level]][i]

    def _step(self, level: int, i: int) -> int:
        return self.grid.step(self.grid.order[level], i)


@torch.inference_mode()
def stream_logits(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    patch_size: Sequence[int],
    overlap: float = 0.5,
    *,
    batch: int = 1,
    device: torch.device | None = None,
    stitch_device: torch.device | None = None,
) -> Iterator[Block]:
    """Logits of a whole volume in parts, each as soon as it is complete; together they cover every voxel once.

    Windows have Gaussian weights (sigma = patch / 8), as in nnU-Net (Isensee et al., Nature Methods 2021).

    Args:
        network: (B, C, *patch) to (B, K, *patch).
        image: (C, X, Y, Z); an axis shorter than the patch is padded with zeros.
        patch_size: three sizes, or two for a network that takes slices along the last axis.
        overlap: share of the patch by which windows overlap, in [0, 1).
        batch: windows per call of the network.
        device: where windows are computed; None: where `image` is.
        stitch_device: where the sums are kept; None: where `image` is.

    Yields:
        Blocks on `stitch_device`; along the outermost axis of `WindowGrid.order` they never go back.
    """
    device, stitch_device = device or image.device, stitch_device or image.device
    grid = WindowGrid.over(image.shape[1:], patch_size, overlap)
    before = [(n - m) // 2 for n, m in zip(grid.shape, image.shape[1:], strict=True)]
    padded = _pad(image, grid.shape, before)
    weight = _gaussian(grid.window).to(device)
    accumulator = Accumulator(grid, weight.permute(grid.order), stitch_device)
    places = grid.places()
    while group := list(itertools.islice(places, batch)):
        windows = torch.stack([_cut(padded, grid, place) for place in group]).to(device)
        flat = len(patch_size) == 2
        logits = network(windows[..., 0] if flat else windows)
        logits = logits[..., None] if flat else logits
        for place, values in zip(group, logits.float().permute(0, 1, *(2 + axis for axis in grid.order)), strict=True):
            block = _crop(accumulator.add(values, place), before, image)
            if block.logits.numel():
                yield block


def stream_labels(
    network: Callable[[Tensor], Tensor], image: Tensor, patch_size: Sequence[int], overlap: float = 0.5
) -> Tensor:
    """Class with the largest logit per voxel; memory follows the window, not the volume times the classes.

    Args:
        network, image, patch_size, overlap: as `stream_logits`.

    Returns:
        (X, Y, Z) int16 where `image` is.
    """
    labels = torch.empty(image.shape[1:], dtype=torch.int16, device=image.device)
    for block in stream_logits(network, image, patch_size, overlap):
        labels[block.box] = block.logits.argmax(0).to(torch.int16)
    return labels


def _gaussian(window: Triple) -> Tensor:
    """Weights (x, y, z) float32 of a window's voxels, none below 0.001, so that sums can be divided."""
    weight = torch.ones(())
    for n in window:
        distance = torch.arange(n, dtype=torch.float32) - (n - 1) / 2
        weight = weight[..., None] * torch.exp(distance**2 / (-2 * (SIGMA_SCALE * n) ** 2))
    return weight.clamp(min=max(float(weight.min()), 1e-3))


def _pad(image: Tensor, shape: Triple, before: Sequence[int]) -> Tensor:
    if tuple(image.shape[1:]) == shape:
        return image
    sides = [(low, n - m - low) for low, n, m in zip(before, shape, image.shape[1:], strict=True)]
    return functional.pad(image, [side for pair in reversed(sides) for side in pair])


def _cut(image: Tensor, grid: WindowGrid, place: Triple) -> Tensor:
    starts = {axis: grid.starts[axis][i] for axis, i in zip(grid.order, place, strict=True)}
    return image[(slice(None), *(slice(starts[axis], starts[axis] + grid.window[axis]) for axis in range(3)))]


def _crop(block: Block, before: Sequence[int], image: Tensor) -> Block:
    """The part of a block that is no padding."""
    lows = [max(low - first, 0) for low, first in zip(before, block.start, strict=True)]
    highs = [low + n - first for low, n, first in zip(before, image.shape[1:], block.start, strict=True)]
    inside = (slice(None), *(slice(low, max(high, low)) for low, high in zip(lows, highs, strict=True)))
    x, y, z = (first + low - pad for first, low, pad in zip(block.start, lows, before, strict=True))
    return Block((x, y, z), block.logits[inside])
