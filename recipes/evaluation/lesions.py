"""Detection of lesions: which connected components of a reference a prediction finds, and which it makes up."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ssmvision.recipes.evaluation.components import NEIGHBOURS

__all__ = ["Lesions", "detect"]


@dataclass(frozen=True)
class Lesions:
    """Counts of connected components (26 neighbours); counts of several cases may be added.

    Args:
        reference: lesions there are.
        found: those that the prediction finds.
        predicted: components of the prediction.
        false_positives: those that find no lesion.
    """

    reference: int = 0
    found: int = 0
    predicted: int = 0
    false_positives: int = 0

    def __add__(self, other: Lesions) -> Lesions:
        return Lesions(
            self.reference + other.reference,
            self.found + other.found,
            self.predicted + other.predicted,
            self.false_positives + other.false_positives,
        )

    @property
    def sensitivity(self) -> float:
        """Share of the lesions that are found; NaN where there are none."""
        return self.found / self.reference if self.reference else math.nan

    @property
    def precision(self) -> float:
        """Share of the predicted components that find a lesion; NaN where there are none."""
        return 1 - self.false_positives / self.predicted if self.predicted else math.nan

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and precision: 0 where only one side has lesions, NaN where neither has."""
        if not self.reference and not self.predicted:
            return math.nan
        if not self.found:
            return 0.0
        return 2 * self.sensitivity * self.precision / (self.sensitivity + self.precision)


def detect(prediction: NDArray[np.bool_], reference: NDArray[np.bool_], min_iou: float = 0.0) -> Lesions:
    """Matches the components of two masks.

    With `min_iou` 0, a lesion is found if any predicted voxel lies in it, and a predicted component is a false positive
    if it touches no lesion; one component may find several lesions. Above 0, lesions and components are paired one to
    one, as many as possible, where intersection over union is at least `min_iou`.

    Args:
        prediction: mask (X, Y, Z).
        reference: mask of the same shape.
        min_iou: see above, in [0, 1].
    """
    occupied = ndimage.find_objects((prediction | reference).astype(np.uint8))
    if not occupied:
        return Lesions()
    predicted, predicted_count = ndimage.label(prediction[occupied[0]], NEIGHBOURS)
    lesions, lesion_count = ndimage.label(reference[occupied[0]], NEIGHBOURS)
    both = (predicted > 0) & (lesions > 0)
    pairs, shared = np.unique(np.stack([lesions[both], predicted[both]]), axis=1, return_counts=True)
    if min_iou > 0:
        sizes = np.bincount(lesions.ravel())[pairs[0]] + np.bincount(predicted.ravel())[pairs[1]]
        near = shared / (sizes - shared) >= min_iou
        graph = csr_array(
            (np.ones(int(near.sum())), (pairs[0][near] - 1, pairs[1][near] - 1)), (lesion_count, predicted_count)
        )
        found = int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum()) if near.any() else 0
        return Lesions(lesion_count, found, predicted_count, predicted_count - found)
    return Lesions(lesion_count, len(np.unique(pairs[0])), predicted_count, predicted_count - len(np.unique(pairs[1])))
