"""Where the classes of a case are: enough voxels of each to centre patches on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Locations", "find_locations"]

# nnU-Net v2: this many voxels of a class, or this share where that is more.
ENOUGH = 10_000
SHARE = 0.01
SEED = 1234


@dataclass(frozen=True)
class Locations:
    """Voxels per class, as places in the flattened array.

    Args:
        voxels: int64, those of class 1, then those of class 2, ...
        ends: per class from 1 on, where its voxels end in `voxels`.
    """

    voxels: NDArray[np.int64]
    ends: tuple[int, ...]

    @property
    def present(self) -> list[int]:
        """Classes that have voxels."""
        return [label for label in range(1, len(self.ends) + 1) if self.count(label)]

    def count(self, label: int) -> int:
        """Number of voxels that are known of a class."""
        return self.ends[label - 1] - self._start(label)

    def voxel(self, label: int, number: int) -> int:
        """One of them."""
        return int(self.voxels[self._start(label) + number])

    def _start(self, label: int) -> int:
        return self.ends[label - 2] if label > 1 else 0


def find_locations(label: NDArray[np.integer], classes: int) -> Locations:
    """Draws voxels of every class but the background, without replacement and the same ones every time.

    Args:
        label: (X, Y, Z).
        classes: number of labels, background included.
    """
    generator = np.random.default_rng(SEED)
    parts, ends = [np.empty(0, np.int64)], []
    flat = np.ascontiguousarray(label).reshape(-1)
    for i in range(1, classes):
        found = np.flatnonzero(flat == i)
        wanted = min(len(found), max(ENOUGH, math.ceil(SHARE * len(found))))
        parts.append(found if wanted == len(found) else np.sort(generator.choice(found, wanted, replace=False)))
        ends.append(sum(map(len, parts)))
    return Locations(np.concatenate(parts), tuple(ends))
