"""The part of an image that holds anything: the box around its voxels that are not zero in every channel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["nonzero_box"]


def nonzero_box(image: NDArray[Any]) -> tuple[slice, ...] | None:
    """The smallest box that holds every voxel of an image (C, X, Y, Z) that is not zero in some channel.

    Returns:
        Three slices; None where nothing can be cut off, be it that the box is the whole volume or that all is zero.
    """
    planes, columns = np.zeros(image.shape[1], bool), np.zeros(image.shape[2:], bool)
    # Plane after plane: a mask of the whole volume would be one more copy of it.
    for i in range(image.shape[1]):
        filled = (image[:, i] != 0).any(0)
        planes[i] = filled.any()
        columns |= filled
    if not planes.any():
        return None
    places = [np.flatnonzero(line) for line in (planes, columns.any(1), columns.any(0))]
    box = tuple(slice(int(found[0]), int(found[-1]) + 1) for found in places)
    return None if tuple(part.stop - part.start for part in box) == image.shape[1:] else box
