"""Connected components of label maps, slab by slab: memory follows the slab, not the volume."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

__all__ = ["NEIGHBOURS", "keep_largest"]

# Voxels that share a face, an edge or a corner belong together (26 neighbours), as in nnU-Net.
NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
SLAB_VOXELS = 2**22

Parts = NDArray[np.int32]


def keep_largest(labels: NDArray[np.integer[Any]], ids: Sequence[int], slab_voxels: int = SLAB_VOXELS) -> int:
    """Sets to 0, in place, all voxels of `ids` outside the largest connected component that they form together.

    Components of equal size are all kept, so that the result does not depend on the order of the axes.

    Args:
        labels: label map (X, Y, Z); may be a memory map.
        ids: non-zero labels that count as one mask.
        slab_voxels: about as many voxels are looked at together.

    Returns:
        Number of voxels set to 0.

    Raises:
        ValueError: `labels` does not have three axes, or 0 is among `ids`.
    """
    if labels.ndim != 3 or 0 in ids:
        raise ValueError(f"labels of shape {labels.shape} and ids {list(ids)}; expected (X, Y, Z) and ids other than 0")
    labels = _box(labels, ids, slab_voxels)
    if not labels.size:
        return 0
    planes = max(1, slab_voxels // labels[0].size)
    sizes, pairs, last = [np.zeros(1, np.int64)], [], None
    for _, parts, first in _slabs(labels, ids, planes):
        sizes.append(np.bincount(parts.ravel())[1:])
        if last is not None:
            pairs.append(_touching(last, np.where(parts[0] > 0, parts[0] + first, 0)))
        last = np.where(parts[-1] > 0, parts[-1] + first, 0)
    kept = _largest(np.concatenate(sizes), pairs)
    if kept.all():
        return 0
    removed = 0
    for slab, parts, first in _slabs(labels, ids, planes):
        stray = (parts > 0) & ~kept[np.where(parts > 0, parts + first, 0)]
        removed += int(stray.sum())
        slab[stray] = 0
    return removed


def _mask(labels: NDArray[np.integer[Any]], ids: Sequence[int]) -> NDArray[np.bool_]:
    return np.asarray(labels == ids[0] if len(ids) == 1 else np.isin(labels, ids))


def _box(labels: NDArray[np.integer[Any]], ids: Sequence[int], slab_voxels: int) -> NDArray[np.integer[Any]]:
    """View of the smallest box that holds all voxels of `ids`; empty without any."""
    planes = max(1, slab_voxels // max(1, labels[0].size if len(labels) else 1))
    found = [np.zeros(n, dtype=bool) for n in labels.shape]
    for start in range(0, len(labels), planes):
        mask = _mask(labels[start : start + planes], ids)
        flat: NDArray[np.bool_] = np.logical_or.reduce(mask, axis=0)
        found[0][start : start + planes] = mask.any((1, 2))
        found[1] |= flat.any(1)
        found[2] |= flat.any(0)
    ends = [np.flatnonzero(axis)[[0, -1]] if axis.any() else (0, -1) for axis in found]
    return labels[tuple(slice(int(first), int(last) + 1) for first, last in ends)]


def _slabs(
    labels: NDArray[np.integer[Any]], ids: Sequence[int], planes: int
) -> Iterator[tuple[NDArray[np.integer[Any]], Parts, int]]:
    """Views of consecutive slabs, their components numbered from 1, and how many there were before."""
    before = 0
    for start in range(0, len(labels), planes):
        slab = labels[start : start + planes]
        parts, count = ndimage.label(_mask(slab, ids), structure=NEIGHBOURS)
        yield slab, parts, before
        before += count


def _touching(below: Parts, above: Parts) -> NDArray[np.int64]:
    """Pairs (N, 2) of components in two neighbouring planes that have neighbouring voxels."""
    padded = np.pad(below, 1)
    rows, columns = above.shape
    found = []
    for i in range(3):
        for j in range(3):
            shifted = padded[i : i + rows, j : j + columns]
            both = (shifted > 0) & (above > 0)
            found.append(np.stack([shifted[both], above[both]], axis=1))
    return np.unique(np.concatenate(found), axis=0).astype(np.int64)


def _largest(sizes: NDArray[np.int64], pairs: list[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """Which numbers belong to a component of the greatest size; number 0 is no component and always kept."""
    joined = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    graph = coo_array((np.ones(len(joined), bool), (joined[:, 0], joined[:, 1])), shape=(len(sizes), len(sizes)))
    _, roots = connected_components(graph, directed=False)
    totals = np.bincount(roots, weights=sizes)
    kept = totals[roots] == totals.max()
    kept[0] = True
    return np.asarray(kept)
