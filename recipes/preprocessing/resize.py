"""Images and label maps resized by nnU-Net's rules: cubic splines in the plane, whole slices taken across thick ones.

Voxels are boxes: the first and last one's outer edges stay where they are (half-voxel alignment), and outside them the
border's value holds. An image is resized as scikit-image's `resize(order=3, mode="edge", anti_aliasing=False)` does it,
which is SciPy's `zoom` with `grid_mode`; axis after axis, as splines allow, a few rows at a time, so that memory is
the image's own and twice the work of one axis is saved by leaving out those that keep their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, zoom

__all__ = ["nearest_places", "resize_image", "resize_labels", "separate_axis"]

# Isensee et al., Nature Methods 2021, supplementary note 2: beyond this ratio of voxel edges, interpolating across the
# slices would invent anatomy between them.
ANISOTROPY = 3.0
CHUNK_BYTES = 2**26


def separate_axis(source_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """The axis that is resized by taking whole slices, or None.

    It is the one along which voxels are more than three times as long as along the finest, in the source, else in the
    target; where two axes are the longest, there is none.

    Args:
        source_mm, target_mm: voxel edges per axis.
    """
    for spacing in (source_mm, target_mm):
        if max(spacing) / min(spacing) > ANISOTROPY:
            longest = [axis for axis, edge in enumerate(spacing) if edge == max(spacing)]
            return longest[0] if len(longest) == 1 else None
    return None


def nearest_places(size: int, target: int) -> NDArray[np.intp]:
    """For each of `target` voxels along an axis, the one among `size` whose centre is nearest; of two, the later."""
    places: NDArray[np.intp] = np.floor(size / target * (np.arange(target) + 0.5)).astype(np.intp)
    return places.clip(max=size - 1)


def resize_image(image: NDArray[np.float32], shape: Sequence[int], separate: int | None) -> NDArray[np.float32]:
    """Intensities on another number of voxels over the same box.

    Args:
        image: (C, X, Y, Z).
        shape: three target sizes.
        separate: axis along which whole slices are taken, see `separate_axis`.

    Returns:
        (C, *shape) float32; like the original where the sizes are equal. No value lies beyond those of its channel (of
        its slice, where slices are taken), as a spline's overshoot is cut.
    """
    if image.shape[1:] == tuple(shape):
        return image
    kept = () if separate is None else (1 + separate,)
    inner = tuple(axis for axis in (1, 2, 3) if axis not in kept)
    # Shrinking first leaves less to do.
    order = sorted(inner, key=lambda axis: shape[axis - 1] / image.shape[axis])
    result = image
    for axis in order:
        result = _spline(result, axis, shape[axis - 1])
    if result is not image:
        low, high = (edge(image, axis=inner, keepdims=True) for edge in (np.min, np.max))
        np.clip(result, low, high, out=result)
    for axis in kept:
        result = result.take(nearest_places(image.shape[axis], shape[axis - 1]), axis)
    return result


@lru_cache(maxsize=64)
def _weights(size: int, target: int, order: int) -> NDArray[np.float64]:
    """(target, size): SciPy's interpolation along one axis, which is linear in the voxels, as a matrix."""
    lines = [zoom(line, target / size, order=order, mode="nearest", grid_mode=True) for line in np.eye(size)]
    return np.stack(lines, 1)


def _spline(image: NDArray[np.float32], axis: int, size: int) -> NDArray[np.float32]:
    """Cubic spline along one axis, in float64 inside."""
    n = image.shape[axis]
    if n == size:
        return image
    result = np.empty([size if i == axis else m for i, m in enumerate(image.shape)], np.float32)
    # Any other axis can be cut, as lines do not know of each other.
    cut = 1 if axis != 1 else 2
    rows = max(CHUNK_BYTES * image.shape[cut] // (8 * max(image.size, result.size)), 1)
    for first in range(0, image.shape[cut], rows):
        part = tuple(slice(first, first + rows) if i == cut else slice(None) for i in range(4))
        lines = np.moveaxis(image[part], axis, -1).astype(np.float64)
        result[part] = np.moveaxis(lines @ _weights(n, size, 3).T, -1, axis)
    return result


def resize_labels(labels: NDArray[np.integer], shape: Sequence[int], separate: int | None) -> NDArray[np.int16]:
    """A label map on another number of voxels: linear per label, which holds where its share is one half or more.

    Where two labels have one half each, the larger id holds; where none has, 0.

    Args:
        labels: (X, Y, Z), ids of any sign.
        shape, separate: as `resize_image`.

    Returns:
        (*shape) int16.
    """
    if labels.shape == tuple(shape):
        return labels.astype(np.int16, copy=False)
    if separate is not None:
        labels = labels.take(nearest_places(labels.shape[separate], shape[separate]), separate)
    result = np.zeros(shape, np.int16)
    least = int(labels.min())
    boxes = find_objects(labels.astype(np.int32) - least + 1)
    for offset, box in enumerate(boxes):
        # 0 holds anyway, but where a negative label has one half as well.
        if box is not None and (least + offset != 0 or least < 0):
            _paint(result, labels, least + offset, box)
    return result


def _paint(result: NDArray[np.int16], labels: NDArray[np.integer], label: int, box: tuple[slice, ...]) -> None:
    """Writes one label, which lies in `box`, into the resized map; only what the box can reach is computed."""
    share = (labels[box] == label).astype(np.float64)
    target = []
    for axis, part in enumerate(box):
        weights = _weights(labels.shape[axis], result.shape[axis], 1)[:, part]
        reached = np.flatnonzero(weights.any(1))
        if not len(reached):
            return  # so small that no voxel of a coarse target looks at it
        target.append(slice(reached[0], reached[-1] + 1))
        share = np.moveaxis(np.moveaxis(share, axis, -1) @ weights[target[-1]].T, -1, axis)
    result[tuple(target)][share >= 0.5] = label
