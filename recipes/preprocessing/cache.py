"""Prepares the cases of a dataset once: in parallel, going on where it stopped, again only what changed."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.case import read_case
from ssmvision.recipes.preprocessing.store import CaseStore, entry_key, is_complete, write_entry
from ssmvision.recipes.segmentation.datalist import Case, Dataset
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.workers import count_workers, map_cases

__all__ = ["CacheTask", "Cached", "fill_cache", "prepare_entry"]

# A worker takes seconds to start, as it imports what reads and resamples: so much of files is worth one.
BYTES_PER_WORKER = 2**25
HASHING_THREADS = 4


@dataclass(frozen=True)
class CacheTask:
    """What a worker needs to prepare one case."""

    case: Case
    channels: tuple[str, ...]
    label_ids: tuple[int, ...]
    how: Preprocessing
    folder: Path

    @property
    def files(self) -> list[Path]:
        """The case's files."""
        return [*self.case.images, *([] if self.case.label is None else [self.case.label])]


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
        workers: processes, each with one case in memory; 0: as many as pay, one per CPU core and 8 at most.
        done: called with the id of each finished case.

    Returns:
        Entries by case id.

    Raises:
        UserError: names every case that could not be prepared; the others are, and are kept.
    """
    cases = {case.id: case for case in (*dataset.training, *dataset.validation)}
    ids = tuple(dataset.labels.values())
    tasks = {name: CacheTask(case, dataset.channels, ids, how, folder) for name, case in cases.items()}
    found, problems, missing = _look_up(tasks)
    for name in found:
        done(name)
    outcomes = map_cases(prepare_entry, missing, _workers(workers, missing), done)
    problems += [outcome.problem for outcome in outcomes if outcome.problem is not None]
    if problems:
        raise UserError(
            f"preprocessing: {len(problems)} of {len(cases)} case(s) failed, the others are kept; mend or remove them "
            f"and run again: {'; '.join(problems)}"
        )
    found |= {outcome.case: outcome.value for outcome in outcomes if outcome.value is not None}
    return {name: found[name] for name in cases}


def _look_up(
    tasks: dict[str, CacheTask],
) -> tuple[dict[str, Cached], list[str], list[tuple[str, tuple[CacheTask, Path]]]]:
    """Cases that are there, what is wrong with some, and what has to be prepared where."""
    found, problems, missing = {}, [], []
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        for (name, task), entry in zip(tasks.items(), pool.map(_entry, tasks.values()), strict=True):
            if isinstance(entry, str):
                problems.append(entry)
            elif is_complete(entry):
                found[name] = _describe(entry, made=False)
            else:
                missing.append((name, (task, entry)))
    return found, problems, missing


def _entry(task: CacheTask) -> Path | str:
    """Folder of a case's entry, or what is wrong with its files."""
    try:
        return task.folder / entry_key(task.how, task.case, task.channels, task.label_ids)
    except UserError as error:
        return str(error)


def _workers(setting: int, missing: list[tuple[str, tuple[CacheTask, Path]]]) -> int:
    workers = count_workers(setting, len(missing))
    if setting == 0:
        size = sum(path.stat().st_size for _, (task, _) in missing for path in task.files)
        workers = min(workers, 1 + size // BYTES_PER_WORKER)
    return workers


def prepare_entry(task_and_entry: tuple[CacheTask, Path]) -> Cached:
    """Prepares one case and writes it into its folder.

    Raises:
        UserError: a file is unusable, or the disk is full.
    """
    task, entry = task_and_entry
    write_entry(entry, read_case(task.how, task.case, task.channels, task.label_ids))
    return _describe(entry, made=True)


def _describe(entry: Path, made: bool) -> Cached:
    store = CaseStore(entry)
    return Cached(entry, store.shape, store.size, made)
