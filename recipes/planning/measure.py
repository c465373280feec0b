"""Measures the fingerprint of a dataset from its files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from ssmvision.errors import UserError
from ssmvision.recipes.planning.fingerprint import Fingerprint, Intensities
from ssmvision.recipes.segmentation.datalist import Case, Dataset
from ssmvision.recipes.segmentation.volumes import Grid, read_image, read_label_map
from ssmvision.recipes.workers import count_workers, map_cases

__all__ = ["CaseMeasure", "CaseTask", "measure_case", "measure_dataset", "pool_intensities"]

# nnU-Net draws this many labelled voxels from the whole dataset, the same number from every case.
DRAWS = 10**8
SEED = 1234
DRAWS_AT_ONCE = 10**6
# A picture has no slices; nnU-Net gives it this distance between them, so that the third axis always leads.
PICTURE_SPACING = 999.0


@dataclass(frozen=True)
class CaseTask:
    """What a worker needs to measure one case."""

    case: Case
    channels: tuple[str, ...]
    label_ids: tuple[int, ...]
    orientation: str | None
    draws: int


@dataclass(frozen=True)
class CaseMeasure:
    """One case, axes (z, y, x).

    Args:
        shape: voxels of the box around everything that is not zero.
        spacing: voxel edges in mm.
        share: voxels of that box as a share of all.
        values, counts: per channel, the distinct intensities among the drawn labelled voxels and how often each was
            drawn; empty without labelled voxels.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    share: float
    values: tuple[NDArray[np.float32], ...]
    counts: tuple[NDArray[np.int64], ...]


def measure_dataset(
    dataset: Dataset, orientation: str | None, workers: int = 0, done: Callable[[str], None] = lambda case: None
) -> Fingerprint:
    """The fingerprint of the training cases, as nnU-Net v2 takes it.

    Args:
        dataset: validation cases that a datalist names are left out.
        orientation: axis codes that cases are turned to first, or None for the axes as stored (nnU-Net's way).
        workers: processes, see `workers.count_workers`.
        done: called with the id of each finished case.

    Raises:
        UserError: names every case that could not be measured.
    """
    draws, ids = DRAWS // len(dataset.training), tuple(dataset.labels.values())
    tasks = [(c.id, CaseTask(c, dataset.channels, ids, orientation, draws)) for c in dataset.training]
    outcomes = map_cases(measure_case, tasks, count_workers(workers, len(tasks)), done)
    problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    if problems:
        more = f" (and {len(problems) - 1} more; `ssmvision check` lists all)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")
    measures = [outcome.value for outcome in outcomes if outcome.value is not None]
    pools = [
        pool_intensities([m.values[c] for m in measures], [m.counts[c] for m in measures])
        for c in range(len(dataset.channels))
    ]
    return Fingerprint(
        tuple(m.spacing for m in measures),
        tuple(m.shape for m in measures),
        tuple(pool for pool in pools if pool is not None),
        float(np.median([m.share for m in measures])),
    )


def measure_case(task: CaseTask) -> CaseMeasure:
    """Reads one case and measures it.

    Raises:
        UserError: a file is unusable, or every voxel is 0.
    """
    case = task.case
    image = read_image(case.images, task.channels)
    if case.label is None:
        raise UserError(f"{image.grid.path}: case {case.id!r} has no label map; add its file")
    labels, _ = read_label_map(case.label, task.label_ids, image.grid)
    axes, flips, spacing = _turn(image.grid, task.orientation)
    data = np.flip(image.data.transpose(0, *(a + 1 for a in axes)), tuple(a + 1 for a in flips))
    labels = np.flip(labels.transpose(axes), flips)
    box = _nonzero_box(image.grid, data)
    cropped, foreground = data[(slice(None), *box)], labels[box] > 0
    draws = _draw(cropped, foreground, task.draws)
    return CaseMeasure(
        foreground.shape,
        spacing,
        foreground.size / labels.size,
        tuple(values for values, _ in draws),
        tuple(counts for _, counts in draws),
    )


def _turn(grid: Grid, orientation: str | None) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """How stored axes become (z, y, x) after turning: their order, the new axes to reverse, and the spacing."""
    order, reverse = [0, 1, 2], [False] * 3
    if orientation is not None:
        codes = nibabel.orientations
        turn = codes.ornt_transform(codes.io_orientation(grid.affine), codes.axcodes2ornt(orientation))
        order = [int(np.argwhere(turn[:, 0] == axis)[0, 0]) for axis in range(3)]
        reverse = [bool(turn[stored, 1] < 0) for stored in order]
    spacing = [PICTURE_SPACING if grid.stored_2d and axis == 2 else grid.spacing_mm[axis] for axis in order]
    flips = tuple(2 - axis for axis in range(3) if reverse[axis])
    return tuple(order[::-1]), flips, tuple(spacing[::-1])


def _nonzero_box(grid: Grid, data: NDArray[np.float32]) -> tuple[slice, ...]:
    """The box around the voxels that are not zero in every channel."""
    boxes = find_objects((data != 0).any(axis=0).astype(np.uint8))
    if not boxes:
        raise UserError(f"{grid.path}: every voxel is 0; export the image again or remove the case")
    box: tuple[slice, ...] = boxes[0]
    return box


def _draw(
    data: NDArray[np.float32], foreground: NDArray[np.bool_], draws: int
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Per channel, labelled voxels drawn with replacement by nnU-Net's generator, equal intensities counted."""
    generator = np.random.RandomState(SEED)
    drawn = []
    for channel in data:
        voxels = channel[foreground]
        times = np.zeros(len(voxels), dtype=np.int64)
        for start in range(0, draws if len(voxels) else 0, DRAWS_AT_ONCE):
            chosen = generator.randint(0, len(voxels), min(DRAWS_AT_ONCE, draws - start))
            times += np.bincount(chosen, minlength=len(voxels))
        values, place = np.unique(voxels, return_inverse=True)
        counts = np.bincount(place, weights=times, minlength=len(values)).astype(np.int64)
        drawn.append((values[counts > 0], counts[counts > 0]))
    return drawn


def pool_intensities(values: Sequence[NDArray[np.float32]], counts: Sequence[NDArray[np.int64]]) -> Intensities | None:
    """Statistics of all draws of one channel, in float64; None without any.

    Args:
        values: distinct intensities per case.
        counts: how often each was drawn.
    """
    pooled, place = np.unique(np.concatenate(values).astype(np.float64), return_inverse=True)
    if not len(pooled):
        return None
    times = np.bincount(place, weights=np.concatenate(counts)).astype(np.int64)
    total, upto = int(times.sum()), np.cumsum(times)
    mean = float(pooled @ times / total)
    low, median, high = (_percentile(pooled, upto, q) for q in (0.5, 50.0, 99.5))
    std = float(np.sqrt((pooled - mean) ** 2 @ times / total))
    return Intensities(mean, median, std, float(pooled[0]), float(pooled[-1]), low, high)


def _percentile(values: NDArray[np.float64], upto: NDArray[np.int64], q: float) -> float:
    """Percentile of sorted values that occur several times each, between two of them linear, as numpy's."""
    position = q / 100 * (int(upto[-1]) - 1)
    below = int(position)
    left, right = (values[np.searchsorted(upto, k, side="right")] for k in (below, min(below + 1, int(upto[-1]) - 1)))
    return float(left + (right - left) * (position - below))
