"""Scores of one class in one case: Dice, normalised surface Dice, HD95, volumes, and detection of lesions.

Empty masks, chosen so that a miss never improves a score (MONAI 1.6 gives NaN for HD95 there, which means leave out):
  * both empty: nothing to judge; Dice, NSD, HD95 and the relative volume error are NaN, the state is "both_empty" and
    means leave the case out;
  * one empty: Dice 0, NSD 0, HD95 = the diagonal of the image in mm, the largest distance two voxels can have, and the
    relative volume error is -200 % or 200 %, its extreme values.
The volume error in ml is what it is, however: a miss of a small object is a small error. So is the number of false
positives, which says something only beside the sensitivity; their F1 is 0 where one mask is empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

from ssmvision.recipes.evaluation.lesions import Lesions, detect

__all__ = ["COLUMNS", "Score", "score_from_row", "score_mask", "score_masks"]

State = Literal["ok", "missed", "false_positive", "both_empty"]
IDENTITY = ("case", "label")
NUMBERS = (
    *("dice", "nsd", "hd95_mm", "volume_prediction_ml", "volume_reference_ml"),
    *("volume_error_ml", "volume_error_percent"),
)
COUNTS = ("reference", "found", "predicted", "false_positives")
COLUMNS = (*IDENTITY, *NUMBERS, *(f"lesions_{name}" for name in COUNTS), "state")


@dataclass(frozen=True)
class Score:
    """One class of one case.

    Args:
        case, label: where the numbers belong.
        dice: 2 |P and R| / (|P| + |R|), in [0, 1].
        nsd: share of both surfaces within the tolerance of the other (Nikolov et al., arXiv 1809.04430), in [0, 1].
        hd95_mm: 95th percentile of the surface distances, the larger of both directions.
        volume_prediction_ml, volume_reference_ml: voxel count times voxel volume.
        state: "ok", or why Dice, NSD and HD95 follow the rule for empty masks.
        lesions: counts of connected components.
    """

    case: str
    label: str
    dice: float
    nsd: float
    hd95_mm: float
    volume_prediction_ml: float
    volume_reference_ml: float
    state: State
    lesions: Lesions = field(default_factory=Lesions)

    @property
    def volume_error_ml(self) -> float:
        """Predicted minus reference volume."""
        return self.volume_prediction_ml - self.volume_reference_ml

    @property
    def volume_error_percent(self) -> float:
        """Volume error over the mean of both volumes, -200 (missed) to 200 (made up).

        The usual ratio to the reference alone would end at -100 for a miss but have no end on the other side.
        """
        total = self.volume_prediction_ml + self.volume_reference_ml
        return 200.0 * self.volume_error_ml / total if total else math.nan

    def row(self) -> dict[str, Any]:
        """All numbers under the names that files give them."""
        return {
            **{name: getattr(self, name) for name in (*IDENTITY, *NUMBERS)},
            **{f"lesions_{name}": getattr(self.lesions, name) for name in COUNTS},
            "state": self.state,
        }


def score_from_row(row: Mapping[str, Any]) -> Score:
    """The score that gave this `Score.row`, with None for NaN.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    numbers = {name: math.nan if row[name] is None else float(row[name]) for name in NUMBERS}
    for derived in ("volume_error_ml", "volume_error_percent"):
        del numbers[derived]
    lesions = Lesions(*(int(row[f"lesions_{name}"]) for name in COUNTS))
    return Score(case=str(row["case"]), label=str(row["label"]), state=row["state"], lesions=lesions, **numbers)


def score_mask(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    case: str = "",
    label: str = "",
    lesion_iou: float = 0.0,
    voxel_ml: float | None = None,
) -> Score:
    """Scores one boolean mask (X, Y, Z) against another.

    Args:
        prediction: the mask to judge.
        reference: the mask that counts as right.
        spacing_mm: voxel edges per axis; distances take the axes as perpendicular.
        tolerance_mm: distance up to which surfaces agree in NSD.
        case: copied to the result.
        label: copied to the result.
        lesion_iou: see `lesions.detect`.
        voxel_ml: volume of a voxel, where its edges are not perpendicular; None: their product.

    Raises:
        ValueError: shapes differ or are not three-dimensional.
    """
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise ValueError(f"masks of shape {prediction.shape} and {reference.shape}; expected two equal (X, Y, Z)")
    ml = math.prod(spacing_mm) / 1000.0 if voxel_ml is None else voxel_ml
    counts = int(prediction.sum()), int(reference.sum())
    volumes = counts[0] * ml, counts[1] * ml
    if not any(counts):
        return Score(case, label, math.nan, math.nan, math.nan, *volumes, "both_empty")
    lesions = detect(prediction, reference, lesion_iou)
    if not all(counts):
        diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(prediction.shape, spacing_mm, strict=True)))
        state: State = "missed" if counts[1] else "false_positive"
        return Score(case, label, 0.0, 0.0, diagonal, *volumes, state, lesions)
    dice = 2.0 * int((prediction & reference).sum()) / sum(counts)
    nsd, hd95 = _surface_scores(prediction, reference, spacing_mm, tolerance_mm)
    return Score(case, label, dice, nsd, hd95, *volumes, "ok", lesions)


def _surface_scores(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    """NSD and HD95 of two masks that are not empty, on the part of the volume that holds them.

    In an image of a single slice surfaces are outlines: it has no voxels above and below whose lack would count.
    """
    flat = [axis for axis, n in enumerate(prediction.shape) if n == 1][:1]
    prediction, reference = (np.squeeze(mask, tuple(flat)) for mask in (prediction, reference))
    spacing_mm = [edge for axis, edge in enumerate(spacing_mm) if axis not in flat]
    # One empty voxel around: a mask at the border of the volume has its surface there.
    occupied = np.argwhere(prediction | reference)
    box = tuple(slice(a, b + 1) for a, b in zip(occupied.min(0), occupied.max(0), strict=True))
    # MONAI's surfaces and distances, without MONAI, whose import takes longer than most cases.
    p, r = (_surface_mm(np.pad(mask[box], 1), spacing_mm) for mask in (prediction, reference))
    to_reference, to_prediction = _distances(p, r), _distances(r, p)
    near = int((to_reference <= tolerance_mm).sum()) + int((to_prediction <= tolerance_mm).sum())
    hd95 = max(float(np.percentile(d, 95)) for d in (to_reference, to_prediction))
    return near / (to_reference.size + to_prediction.size), hd95


def _surface_mm(mask: NDArray[np.bool_], spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Places (N, D) in mm of the mask's voxels that have a face in common with a voxel outside."""
    return np.asarray(np.argwhere(mask & ~binary_erosion(mask)) * np.asarray(spacing_mm), dtype=np.float64)


def _distances(places: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each place to the nearest of the others, rounded to float32 as MONAI does."""
    # A tree for one query is built faster with larger leaves.
    found, _ = KDTree(others, leafsize=32).query(places)
    return np.asarray(found, dtype=np.float32).astype(np.float64)


def score_masks(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    labels: Mapping[str, int],
    spacing_mm: Sequence[float],
    tolerance_mm: float | Mapping[str, float] = 1.0,
    case: str = "",
    lesion_iou: float = 0.0,
    voxel_ml: float | None = None,
) -> tuple[Score, ...]:
    """Scores every class but background (id 0) of one label map (X, Y, Z) against another.

    Arguments are those of `score_mask`; `tolerance_mm` may name one for each class.
    """
    scores = []
    for name, i in labels.items():
        if i != 0:
            tolerance = tolerance_mm if isinstance(tolerance_mm, int | float) else tolerance_mm[name]
            masks = prediction == i, reference == i
            scores.append(score_mask(*masks, spacing_mm, tolerance, case, name, lesion_iou, voxel_ml))
    return tuple(scores)
