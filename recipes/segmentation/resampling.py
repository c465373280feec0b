"""Volumes brought from grid to grid a few planes at a time, and back to the stored order of axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import nibabel
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ssmvision.recipes.planning.spacing import resampled_shape
from ssmvision.recipes.preprocessing.crop import nonzero_box
from ssmvision.recipes.preprocessing.resize import resize_image, separate_axis
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.streaming import Block, Triple

__all__ = ["Regrid", "RegriddedBlocks", "resample"]

# As MONAI's resampling: affines closer than this need none.
AFFINE_TOLERANCE = 1e-3
# A place this close to the middle between two slices is in the middle, and the later one is taken.
TIE = 1e-6
# Coordinates and values of the planes that are resampled at a time.
CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class Regrid:
    """The way from the stored grid to the network's: axes turned, cut, resampled where the spacing asks for it.

    Args:
        orientation: how the stored axes are turned, (3, 2) as in nibabel.orientations; None: not at all.
        turned_shape, turned_affine: after turning and cutting.
        shape, affine: of the network's grid.
        how: what decided it.
        box: what is left of the turned array; None: all.
        separate: axis along which whole slices are taken instead of interpolating; None: none.
    """

    orientation: NDArray[np.float64] | None
    turned_shape: Triple
    turned_affine: NDArray[np.float64]
    shape: Triple
    affine: NDArray[np.float64]
    how: Preprocessing
    box: tuple[slice, ...] | None = None
    separate: int | None = None

    @classmethod
    def of(cls, how: Preprocessing, shape: Sequence[int], affine: NDArray[np.float64]) -> Regrid:
        """Decides it from shape and affine (4, 4) alone, as `Preprocessing.image` does it; no voxel is touched."""
        ornt = None
        if how.orientation is not None:
            wanted = nibabel.orientations.axcodes2ornt(how.orientation)
            ornt = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), wanted)
            affine = affine @ nibabel.orientations.inv_ornt_aff(ornt, shape)
            shape = _apply(np.broadcast_to(np.uint8(0), tuple(shape)), ornt).shape
        turned = cast(Triple, tuple(shape))
        same = cls(ornt, turned, affine, turned, affine, how)
        if how.rules == "nnunet":
            return same._resized()
        if how.spacing_mm is None:
            return same
        target, new = spaced_grid(turned, affine, how.spacing_mm)
        found = replace(same, shape=target, affine=new)
        return found if found.resamples else same

    def _resized(self) -> Regrid:
        """The same with the network's grid as nnU-Net chooses it: over the very box of the turned and cut one."""
        source = np.linalg.norm(self.turned_affine[:3, :3], axis=0)
        if self.how.spacing_mm is None:
            return replace(self, shape=self.turned_shape, affine=self.turned_affine)
        target = [wanted if wanted > 0 else float(own) for wanted, own in zip(self.how.spacing_mm, source, strict=True)]
        shape = tuple(max(n, 1) for n in resampled_shape(self.turned_shape, source.tolist(), target))
        scale = np.array(self.turned_shape) / np.array(shape)
        step = np.diag([*scale, 1.0])
        step[:3, 3] = (scale - 1) / 2
        separate = separate_axis(source.tolist(), target)
        return replace(self, shape=cast(Triple, shape), affine=self.turned_affine @ step, separate=separate)

    def cut(self, stored: NDArray[Any]) -> Regrid:
        """The same for an image (C, X, Y, Z) whose voxels are known: by nnU-Net's rules zeros around it are cut off."""
        box = nonzero_box(self.turn(stored)) if self.how.rules == "nnunet" else None
        if box is None:
            return self
        step = np.eye(4)
        step[:3, 3] = [part.start for part in box]
        shape = cast(Triple, tuple(part.stop - part.start for part in box))
        return replace(self, turned_shape=shape, turned_affine=self.turned_affine @ step, box=box)._resized()

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel edges of the network's grid."""
        return tuple(float(edge) for edge in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def resamples(self) -> bool:
        """Whether the grids differ by more than the order and direction of axes, and by what is cut off."""
        if self.how.rules == "nnunet":
            return self.turned_shape != self.shape
        near = np.allclose(self.turned_affine, self.affine, atol=AFFINE_TOLERANCE) or np.allclose(
            self.matrix, np.eye(4), atol=AFFINE_TOLERANCE
        )
        return self.turned_shape != self.shape or not near

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(4, 4), voxel index on the network's grid to voxel index on the turned one."""
        return np.asarray(np.linalg.solve(self.turned_affine, self.affine), dtype=np.float64)

    def turn(self, stored: NDArray[Any]) -> NDArray[Any]:
        """View of an array (..., X, Y, Z) in stored order with its axes as the network has them, cut."""
        turned = stored
        if self.orientation is not None:
            back = np.moveaxis(stored, (-3, -2, -1), (0, 1, 2))
            turned = np.moveaxis(_apply(back, self.orientation), (0, 1, 2), (-3, -2, -1))
        if self.box is None:
            return turned
        x, y, z = self.box
        return turned[..., x, y, z]

    def forward(self, image: Tensor) -> Tensor:
        """Image (C, X, Y, Z) float32 in stored order as it is to be scaled; `finish` comes after that.

        That is turned, and cut or resampled, as the rules have it.
        """
        view = self.turn(image.numpy())
        # An axis of one voxel counts as contiguous to numpy even when it runs backwards, which torch does not take.
        view = view.copy() if min(view.strides) < 0 else np.ascontiguousarray(view)
        turned = torch.from_numpy(view)
        if self.how.rules == "nnunet":
            return turned
        return resample(turned, self.matrix, self.shape) if self.resamples else turned

    def finish(self, scaled: Tensor) -> Tensor:
        """A scaled image (C, X, Y, Z) of `forward` on the network's grid."""
        if self.how.rules != "nnunet" or not self.resamples:
            return scaled
        return torch.from_numpy(resize_image(scaled.numpy(), self.shape, self.separate))

    def backward(self, axis: int) -> RegriddedBlocks:
        """Takes blocks on the network's grid that arrive in order along `axis`, gives those on the turned grid."""
        back = np.asarray(np.linalg.inv(self.matrix), dtype=np.float64)
        return RegriddedBlocks(back, self.shape, self.turned_shape, axis, self.separate)


def _apply(array: NDArray[Any], orientation: NDArray[np.float64]) -> NDArray[Any]:
    return cast("NDArray[Any]", nibabel.orientations.apply_orientation(array, orientation))


def spaced_grid(
    shape: Triple, affine: NDArray[np.float64], spacing_mm: Sequence[float]
) -> tuple[Triple, NDArray[np.float64]]:
    """Shape and affine (4, 4) of a grid with the given voxel edges over another one, as MONAI's `Spacing` has them.

    The new axes are perpendicular: those of the old grid orthogonalised in their order, which matters for a sheared one
    alone. Both grids begin at the same corner voxel where there is one, otherwise they have a common centre.

    Args:
        shape, affine: of the other grid.
        spacing_mm: wanted edges; what is not above 0, or is as near as `AFFINE_TOLERANCE`, is the other grid's own.
    """
    own, wanted = np.linalg.norm(affine[:3, :3], axis=0), np.asarray(spacing_mm, dtype=np.float64)
    edges = np.where((wanted > 0) & (np.abs(own - wanted) > AFFINE_TOLERANCE), wanted, own)
    axes = affine[:3, :3] @ np.linalg.inv(np.linalg.cholesky(affine[:3, :3].T @ affine[:3, :3]).T) * edges
    corners = np.stack(np.meshgrid(*((0.0, n - 1.0) for n in shape), indexing="ij")).reshape(3, -1)
    places = np.linalg.solve(axes, affine[:3, :3] @ corners)
    new = np.round(np.ptp(places, axis=1) + 1.0)
    result = np.eye(4)
    result[:3, :3] = axes
    first = [i for i in range(8) if np.allclose((places - places[:, i : i + 1]).min(1), 0.0)]
    centre, new_centre = (affine[:3, :3] @ (np.array(shape) / 2), axes @ (new / 2))
    result[:3, 3] = affine[:3, 3] + (affine[:3, :3] @ corners[:, first[0]] if first else centre - new_centre)
    return cast(Triple, tuple(int(n) for n in new)), result


def resample(image: Tensor, matrix: NDArray[np.float64], shape: Triple) -> Tensor:
    """Linear interpolation in float64 with repeated borders, a few planes of the first axis at a time.

    Args:
        image: (C, X, Y, Z).
        matrix: (4, 4), voxel index of the result to voxel index of `image`.
        shape: of the result.

    Returns:
        (C, *shape) float32; what MONAI's `SpatialResample` gives, but for rounding in float64.
    """
    result = torch.empty(len(image), *shape)
    rows = _rows_at_a_time(len(image), shape)
    for first in range(0, shape[0], rows):
        last = min(first + rows, shape[0])
        low, high = _needed(matrix, shape, first, last, image.shape[1])
        planes = image[:, low : high + 1]
        result[:, first:last] = _sample(planes, low, image.shape[1], matrix, (first, last), shape[1:])
    return result


def _rows_at_a_time(channels: int, shape: Sequence[int]) -> int:
    return max(CHUNK_BYTES // (8 * (channels + 3) * shape[1] * shape[2]), 1)


def _needed(matrix: NDArray[np.float64], shape: Sequence[int], first: int, last: int, size: int) -> tuple[int, int]:
    """First and last plane of the source that the planes [first, last) of the result are interpolated from."""
    corners = [(a, b, c, 1) for a in (first, last - 1) for b in (0, shape[1] - 1) for c in (0, shape[2] - 1)]
    places = np.array(corners, dtype=np.float64) @ matrix[0]
    low, high = (int(np.clip(np.floor(edge), 0, size - 1)) for edge in (places.min(), places.max()))
    return low, min(high + 1, size - 1)


def _sample(
    planes: Tensor,
    low: int,
    size: int,
    matrix: NDArray[np.float64],
    rows: tuple[int, int],
    shape: Sequence[int],
    separate: int | None = None,
) -> Tensor:
    """Planes `rows` of the result from the source's planes from `low` on, of `size` in all.

    Along the axis `separate`, the nearest voxel is taken instead of interpolating.
    """
    device = planes.device
    a, b, c = (
        torch.arange(*ends, dtype=torch.float64, device=device).reshape([-1 if i == j else 1 for j in range(3)])
        for i, ends in enumerate((rows, (0, shape[0]), (0, shape[1])))
    )
    places = [float(m[0]) * a + float(m[1]) * b + float(m[2]) * c + float(m[3]) for m in matrix[:3]]
    if separate is not None:
        places[separate] = (places[separate] + (0.5 + TIE)).floor()
    # Borders are those of the whole source, not of the planes at hand.
    places[0] = places[0].clamp(0, size - 1) - low
    scaled = [(2 * place + 1) / n - 1 for place, n in zip(places, planes.shape[1:], strict=True)]
    grid = torch.stack(scaled[::-1], -1)[None]
    found = functional.grid_sample(planes[None].double(), grid, "bilinear", "border", align_corners=False)
    return found[0].float()


class RegriddedBlocks:
    """Resamples blocks of logits as they arrive; keeps the planes that planes to come still need.

    Args:
        matrix: (4, 4), voxel index on the target grid to voxel index on the source grid; monotone along `axis`, as
            between grids of the same directions.
        source, target: shapes.
        axis: along which blocks arrive in order.
        separate: axis along which the nearest voxel is taken instead of interpolating; None: none.
    """

    def __init__(
        self, matrix: NDArray[np.float64], source: Triple, target: Triple, axis: int, separate: int | None = None
    ) -> None:
        self.order = (axis, *(other for other in range(3) if other != axis))
        self.separate = None if separate is None else self.order.index(separate)
        permuted = [*self.order, 3]
        self.matrix = matrix[np.ix_(permuted, permuted)]
        self.source, self.target = ([shape[i] for i in self.order] for shape in (source, target))
        self._planes: Tensor | None = None
        self._first = self._end = self._filled = self._row = 0

    def add(self, block: Block) -> Iterator[Block]:
        """Blocks of the target grid that are complete with this one."""
        logits = block.logits.permute(0, *(1 + axis for axis in self.order))
        start = [block.start[axis] for axis in self.order]
        if self._filled == 0:
            self._extend(logits)
        planes = cast(Tensor, self._planes)
        a, b, c = (slice(first, first + n) for first, n in zip(start, logits.shape[1:], strict=True))
        planes[:, a.start - self._first : a.stop - self._first, b, c] = logits
        self._filled += logits[0].numel()
        if self._filled == logits.shape[1] * self.source[1] * self.source[2]:
            self._filled, self._end = 0, a.stop
            yield from self._emit()

    def _extend(self, logits: Tensor) -> None:
        """Makes room for the next planes and lets go of those that no plane to come needs."""
        low, _ = _needed(self.matrix, self.target, self._row, self._row + 1, self.source[0])
        low = min(low, self._end)
        kept = None if self._planes is None else self._planes[:, low - self._first :].clone()
        count = self._end - low
        self._planes = None
        grown = torch.empty(len(logits), count + logits.shape[1], *self.source[1:], device=logits.device)
        if kept is not None:
            grown[:, :count] = kept
        self._planes, self._first = grown, low

    def _emit(self) -> Iterator[Block]:
        planes, size = cast(Tensor, self._planes), self.source[0]
        rows = _rows_at_a_time(len(planes), self.target)
        back = [1 + self.order.index(axis) for axis in range(3)]
        while self._row < self.target[0]:
            last = min(self._row + rows, self.target[0])
            while last > self._row and _needed(self.matrix, self.target, self._row, last, size)[1] >= self._end:
                last -= 1
            if last == self._row:
                return
            low, high = _needed(self.matrix, self.target, self._row, last, size)
            needed = planes[:, low - self._first : high + 1 - self._first]
            result = _sample(needed, low, size, self.matrix, (self._row, last), self.target[1:], self.separate)
            first = dict(zip(self.order, (self._row, 0, 0), strict=True))
            self._row = last
            yield Block((first[0], first[1], first[2]), result.permute(0, *back))
