"""Pictures with classes, and the parts of a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ArrayReader", "Chosen", "PictureSets", "Pictures"]


@dataclass(frozen=True)
class Pictures:
    """Pictures of one part.

    Attributes:
        read: index to a picture (H, W) or (H, W, C), uint8, or float32 in [0, 1].
        labels: (N,) class numbers.
        names: of each picture, such as its path below the data's root.
        volumes: names of the volumes that the pictures are slices of; None: no two are of one.
        cases: whose pictures they are, which a split keeps together; None: each is a case of its own.
    """

    read: Callable[[int], NDArray[Any]]
    labels: NDArray[np.int64]
    names: Sequence[str]
    volumes: Sequence[str] | None = None
    cases: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: NDArray[np.int64]) -> Pictures:
        """Some of them, in this order."""
        told = [None if kept is None else [kept[i] for i in indices] for kept in (self.volumes, self.cases)]
        return Pictures(Chosen(self.read, indices), self.labels[indices], [self.names[i] for i in indices], *told)


@dataclass(frozen=True)
class Chosen:
    """Reads by place in a choice of indices; a class, so that worker processes can be given one."""

    read: Callable[[int], NDArray[Any]]
    indices: NDArray[np.int64]

    def __call__(self, index: int) -> NDArray[Any]:
        """The picture at this place."""
        return self.read(int(self.indices[index]))


@dataclass(frozen=True)
class ArrayReader:
    """Reads from an array (N, H, W) or (N, H, W, C)."""

    array: NDArray[Any]

    def __call__(self, index: int) -> NDArray[Any]:
        """One picture."""
        picture: NDArray[Any] = self.array[index]
        return picture


@dataclass(frozen=True)
class PictureSets:
    """The parts of a data set; None where it has no such part."""

    classes: tuple[str, ...]
    training: Pictures
    validation: Pictures | None = None
    test: Pictures | None = None
