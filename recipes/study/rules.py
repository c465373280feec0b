"""Rules without training that every network has to beat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmvision.recipes.segmentation.datalist import Case, Dataset
from ssmvision.recipes.segmentation.metrics import Score, score_masks
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map

__all__ = ["FOREGROUND", "POSITION", "THRESHOLD", "score_rules"]

FOREGROUND, THRESHOLD, POSITION = "everything is foreground", "threshold", "position alone"
Labels = NDArray[np.integer]


def score_rules(
    dataset: Dataset,
    folds: Sequence[tuple[str, ...]],
    tolerance_mm: float,
    threshold: tuple[float, float] | None = None,
) -> dict[str, list[Score]]:
    """Scores by rule, for the cases held out.

    With one class: everything is foreground, and the intensities within `threshold`. Always: "position alone", the
    label that most training cases of the fold have at the same place of their field of view, which is stretched to
    that of the test case.

    Args:
        dataset: all cases under `training`.
        folds: ids of the cases held out, per fold.
        tolerance_mm: of the surface Dice.
        threshold: lowest and highest intensity of the first channel.
    """
    labels = {case.id: read_label_map(_label(case), None)[0].astype(np.uint8) for case in dataset.training}
    scores: dict[str, list[Score]] = {}
    for fold in folds:
        training = [values for name, values in labels.items() if name not in fold]
        for case in (case for case in dataset.training if case.id in fold):
            volume = read_image(case.images, dataset.channels)
            reference = labels[case.id]
            for rule, prediction in _predictions(volume.data[0], training, len(dataset.labels), threshold):
                scores.setdefault(rule, []).extend(
                    score_masks(prediction, reference, dataset.labels, volume.grid.spacing_mm, tolerance_mm, case.id)
                )
    return scores


def _label(case: Case) -> Path:
    assert case.label is not None  # training cases have one
    return case.label


def _predictions(
    image: NDArray[np.float32], training: Sequence[Labels], classes: int, threshold: tuple[float, float] | None
) -> Iterator[tuple[str, Labels]]:
    if classes == 2:
        yield FOREGROUND, np.ones(image.shape, np.uint8)
        if threshold is not None:
            yield THRESHOLD, ((image >= threshold[0]) & (image <= threshold[1])).astype(np.uint8)
    yield POSITION, most_frequent([stretch(labels, image.shape) for labels in training], classes)


def stretch(labels: Labels, shape: Sequence[int]) -> Labels:
    """A label map (X, Y, Z) brought to another shape, nearest neighbour."""
    picked = [(np.arange(n) * old) // n for n, old in zip(shape, labels.shape, strict=True)]
    return labels[np.ix_(*picked)]


def most_frequent(maps: Sequence[Labels], classes: int) -> Labels:
    """The label that most maps have, the lower one in a tie."""
    best, counted = np.zeros(maps[0].shape, np.uint8), np.full(maps[0].shape, -1)
    for label in range(classes):
        count = sum((m == label).astype(np.int64) for m in maps)
        better = count > counted
        best[better], counted = label, np.maximum(count, counted)
    return best
