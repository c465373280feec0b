"""Scores of one class in one case: Dice, normalised surface Dice, HD95 and volumes.

Empty masks, chosen so that a miss never improves a score:
  * both empty: nothing to judge; Dice, NSD and HD95 are NaN, the state is "both_empty" and means leave the case out;
  * one empty: Dice 0, NSD 0, HD95 = the diagonal of the image in mm, the largest distance two voxels can have.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from numpy.typing import NDArray

__all__ = ["Score", "score_mask", "score_masks"]

State = Literal["ok", "missed", "false_positive", "both_empty"]


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
    """

    case: str
    label: str
    dice: float
    nsd: float
    hd95_mm: float
    volume_prediction_ml: float
    volume_reference_ml: float
    state: State


def score_mask(
    prediction: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
    case: str = "",
    label: str = "",
) -> Score:
    """Scores one boolean mask (X, Y, Z) against another.

    Args:
        prediction: the mask to judge.
        reference: the mask that counts as right.
        spacing_mm: voxel edges per axis.
        tolerance_mm: distance up to which surfaces agree in NSD.
        case: copied to the result.
        label: copied to the result.

    Raises:
        ValueError: shapes differ or are not three-dimensional.
    """
    if prediction.shape != reference.shape or prediction.ndim != 3:
        raise ValueError(f"masks of shape {prediction.shape} and {reference.shape}; expected two equal (X, Y, Z)")
    ml = math.prod(spacing_mm) / 1000.0
    counts = int(prediction.sum()), int(reference.sum())
    volumes = counts[0] * ml, counts[1] * ml
    if not any(counts):
        return Score(case, label, math.nan, math.nan, math.nan, *volumes, "both_empty")
    if not all(counts):
        diagonal = math.sqrt(sum((n * s) ** 2 for n, s in zip(prediction.shape, spacing_mm, strict=True)))
        return Score(case, label, 0.0, 0.0, diagonal, *volumes, "missed" if counts[1] else "false_positive")
    dice = 2.0 * int((prediction & reference).sum()) / sum(counts)
    nsd, hd95 = _surface_scores(prediction, reference, spacing_mm, tolerance_mm)
    return Score(case, label, dice, nsd, hd95, *volumes, "ok")


def _surface_scores(
    prediction: NDArray[np.bool_], reference: NDArray[np.bool_], spacing_mm: Sequence[float], tolerance_mm: float
) -> tuple[float, float]:
    """NSD and HD95 of two masks that are not empty, on the part of the volume that holds them."""
    # One empty voxel around: a mask at the border of the volume has its surface there.
    occupied = np.argwhere(prediction | reference)
    box = tuple(slice(a, b + 1) for a, b in zip(occupied.min(0), occupied.max(0), strict=True))
    p, r = (torch.from_numpy(np.pad(mask[box], 1))[None, None].float() for mask in (prediction, reference))
    common: Any = {"include_background": True, "spacing": [float(s) for s in spacing_mm]}
    with warnings.catch_warnings():
        # MONAI 1.6 warns about an argument that it passes to itself.
        warnings.filterwarnings("ignore", message=".*always_return_as_numpy.*")
        nsd = compute_surface_dice(p, r, class_thresholds=[tolerance_mm], **common)
        hd95 = compute_hausdorff_distance(p, r, percentile=95, **common)
    return float(nsd), float(hd95)


def score_masks(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    labels: dict[str, int],
    spacing_mm: Sequence[float],
    tolerance_mm: float = 1.0,
    case: str = "",
) -> tuple[Score, ...]:
    """Scores every class but background (id 0) of one label map (X, Y, Z) against another."""
    return tuple(
        score_mask(prediction == i, reference == i, spacing_mm, tolerance_mm, case, name)
        for name, i in labels.items()
        if i != 0
    )
