"""Prepares the cases of a dataset once: in parallel, going on where it stopped, again only what changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.store import CaseStore, entry_key, is_complete, write_entry
from ssmvision.recipes.segmentation.datalist import Case, Dataset
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.workers import Outcome, count_workers, map_cases

__all__ = ["CacheTask", "Cached", "fill_cache", "prepare_entry"]


@dataclass(frozen=True)
class CacheTask:
    """What a worker needs to prepare one case."""

    case: Case
    channels: tuple[str, ...]
    label_ids: tuple[int, ...]
    how: Preprocessing
    folder: Path


@dataclass(frozen=True)
class Cached:
    """A prepared case on disk.

    Args:
        entry: its folder.
        shape: (C, X, Y, Z).
        size: bytes of its files.
        made: whether it had to be prepared now.
    """

    entry: Path
    shape: tuple[int, ...]
    size: int
    made: bool

    @property
    def raw_size(self) -> int:
        """Bytes without compression, image and label."""
        return 4 * math.prod(self.shape) + math.prod(self.shape[1:])


def fill_cache(
    folder: Path,
    how: Preprocessing,
    dataset: Dataset,
    workers: int = 0,
    done: Callable[[str], None] = lambda case: None,
) -> dict[str, Cached]:
    """Prepares the training and validation cases that the cache does not hold yet.

    Args:
        folder: of the cache; may serve several datasets and rules.
        how: what is done to every case.
        dataset: its cases.
        workers: processes, each with one case in memory; 0: one per CPU core, at most 8.
        done: called with the id of each finished case.

    Returns:
        Entries by case id.

    Raises:
        UserError: names every case that could not be prepared; the others are, and are kept.
    """
    cases = {case.id: case for case in (*dataset.training, *dataset.validation)}
    ids = tuple(dataset.labels.values())
    tasks = [(name, CacheTask(case, dataset.channels, ids, how, folder)) for name, case in cases.items()]
    outcomes = map_cases(prepare_entry, tasks, count_workers(workers, len(tasks)), done)
    _refuse_failed(outcomes)
    return {outcome.case: outcome.value for outcome in outcomes if outcome.value is not None}


def _refuse_failed(outcomes: Sequence[Outcome[Cached]]) -> None:
    problems = [outcome.problem for outcome in outcomes if outcome.problem is not None]
    if problems:
        told = "; ".join(problems)
        raise UserError(
            f"preprocessing: {len(problems)} of {len(outcomes)} case(s) failed, the others are kept; mend or remove "
            f"them and run again: {told}"
        )


def prepare_entry(task: CacheTask) -> Cached:
    """Prepares one case, unless the very same is there.

    Raises:
        UserError: a file is unusable, or the disk is full.
    """
    entry = task.folder / entry_key(task.how, task.case, task.channels, task.label_ids)
    made = not is_complete(entry)
    if made:
        # Only what has to be prepared needs the libraries that read and resample.
        from ssmvision.recipes.preprocessing.case import read_case

        write_entry(entry, read_case(task.how, task.case, task.channels, task.label_ids))
    size = sum(file.stat().st_size for file in entry.iterdir())
    return Cached(entry, CaseStore(entry).shape, size, made)
