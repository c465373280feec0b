"""Baselines that a trained network has to beat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["OracleThresholds", "fit_oracle_thresholds"]


@dataclass(frozen=True)
class OracleThresholds:
    """Two global intensity thresholds: below `low` class 0, from `low` class 1, from `high` class 2.

    Attributes:
        low, high: thresholds in the image's own unit, low <= high.
        dice: mean Dice of classes 1 and 2 on the image they were fitted to.
    """

    low: float
    high: float
    dice: float

    def __call__(self, image: NDArray[np.float32]) -> NDArray[np.uint8]:
        """uint8 labels of the same shape."""
        return np.digitize(image, (self.low, self.high)).astype(np.uint8)


def fit_oracle_thresholds(
    image: NDArray[np.float32], labels: NDArray[np.integer], n_bins: int = 512
) -> OracleThresholds:
    """The best two thresholds there are for this very image, found with its own reference labels.

    An oracle: it sees the answer, so no thresholding that has to work on unseen data can do better. Every pair of
    thresholds on a grid of `n_bins` equal steps over the image's range is tried.

    Args:
        image: intensities, any shape, higher for class 2 than for class 1 than for class 0.
        labels: classes 0, 1, 2, same shape.
        n_bins: steps of the grid; the exact optimum lies within one step, range / n_bins.

    Raises:
        ValueError: shapes differ, a class is absent, or the image is constant or not finite.
    """
    if image.shape != labels.shape:
        raise ValueError(f"image and labels must have one shape, got {image.shape} and {labels.shape}")
    if set(np.unique(labels)) != {0, 1, 2}:
        raise ValueError(f"labels must hold the classes 0, 1 and 2, got {np.unique(labels).tolist()}")
    if not np.isfinite(image).all() or image.min() == image.max():
        raise ValueError("image must be finite and not constant")

    edges = np.linspace(image.min(), image.max(), n_bins + 1)
    counts = np.stack([np.histogram(image[labels == k], edges)[0] for k in range(3)])
    # above[k, i]: voxels of class k at or above edge i; its last column is the empty set.
    above = np.pad(counts[:, ::-1].cumsum(axis=1)[:, ::-1], ((0, 0), (0, 1)))
    total, size = above.sum(axis=0), counts.sum(axis=1)
    dice_high = 2 * above[2] / (total + size[2])
    # Rows are the low threshold, columns the high one; only the upper triangle, low <= high, has a meaning.
    between = np.triu(total[:, None] - total[None, :])
    hits = np.triu(above[1][:, None] - above[1][None, :])
    mean = (2 * hits / (between + size[1]) + dice_high[None, :]) / 2
    mean[np.tril_indices(n_bins + 1, -1)] = -1.0
    low, high = np.unravel_index(int(mean.argmax()), mean.shape)
    return OracleThresholds(float(edges[low]), float(edges[high]), float(mean[low, high]))
