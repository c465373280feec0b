"""Shares a compiled loop out to as many threads as PyTorch is set to use: PyTorch's own where that can be had.

PyTorch's OpenMP threads spin for a while after each of its operations, and threads of ours would have to share the
processors with them: with two of each on two processors, vim_tiny took as long as with one of each.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Loop", "compiled", "openmp", "share_out"]

_PROCESS = os.getpid()
# Vector steps (about 5 ns each) from which on a second thread saves more than it takes to start it, should it sleep.
WORTH_SHARING = 1 << 13
PARTS = 4  # for each thread, as one may be held up


class Loop(NamedTuple):
    """A compiled loop over tasks, in two forms.

    Attributes:
        alone: alone(first, last, *arguments) walks tasks [first, last). It releases Python's lock, and its result does
            not depend on how the tasks are cut.
        shared: shared(threads, parts, tasks, *arguments) does the same with range(tasks) by `team.team`.
    """

    alone: Callable[..., None]
    shared: Callable[..., int]


@lru_cache(maxsize=16)
def compiled(operator: str, name: str) -> Loop:
    """The loop `name`, with `name`_team, of an operator's Numba kernels."""
    kernels = import_module(f"ssmvision.kernels.{operator}.numba_kernels")
    return Loop(getattr(kernels, name), getattr(kernels, f"{name}_team"))


@lru_cache(maxsize=1)
def openmp() -> ctypes.CDLL | None:
    """GNU's OpenMP library that PyTorch has loaded; None on platforms where it uses another."""
    loaded = getattr(os, "RTLD_NOLOAD", None)
    if loaded is None:
        return None
    bundled = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    for name in (*map(str, bundled), "libgomp.so.1"):
        try:
            return ctypes.CDLL(name, mode=loaded | os.RTLD_NOW)
        except OSError:  # not loaded under this name
            continue
    return None


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork, so that a forked process (a data loader's worker) gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="ssmvision")


def share_out(loop: Loop, tasks: int, steps: int, *arguments: Any) -> None:
    """Walks range(tasks) in parts side by side.

    Args:
        loop: to run.
        tasks: how many.
        steps: vector steps of a task, by which small work is not shared.
        arguments: the rest of what `loop` takes.

    Raises:
        MemoryError: a part could not get its scratch memory.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1 or tasks * steps < WORTH_SHARING:
        loop.alone(0, tasks, *arguments)
        return
    if os.getpid() == _PROCESS and openmp() is not None:  # GNU's OpenMP does not survive a fork
        if loop.shared(threads, min(tasks, threads * PARTS), tasks, *arguments):
            raise MemoryError("no memory for the scratch arrays of a compiled loop")
        return
    edges = [tasks * i // threads for i in range(threads + 1)]
    first, *others = pairwise(edges)
    futures = [_pool(os.getpid(), threads - 1).submit(loop.alone, *part, *arguments) for part in others]
    loop.alone(*first, *arguments)
    for future in futures:
        future.result()
