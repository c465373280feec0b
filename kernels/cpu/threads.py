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
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

__all__ = ["share_out"]

_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()
# Vector steps (about 5 ns each) from which on a second thread saves more than it takes to start it.
WORTH_SHARING = 1 << 15


@lru_cache(maxsize=1)
def _openmp() -> ctypes.CDLL | None:
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


def share_out(loop: Callable[..., None], tasks: int, steps: int, *arguments: Any) -> None:
    """Calls loop(first, last, *arguments) on parts of range(tasks) side by side.

    Args:
        loop: releases Python's lock; its result must not depend on how the tasks are cut.
        tasks: how many.
        steps: vector steps of a task, by which small work is not shared.
        arguments: the rest of what `loop` takes.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1 or tasks * steps < WORTH_SHARING:
        loop(0, tasks, *arguments)
        return
    edges = [tasks * i // threads for i in range(threads + 1)]
    parts = list(pairwise(edges))
    library = _openmp() if os.getpid() == _PROCESS else None  # GNU's OpenMP does not survive a fork
    if library is not None:
        _on_team(library, loop, parts, arguments)
        return
    futures = [_pool(os.getpid(), threads - 1).submit(loop, *part, *arguments) for part in parts[1:]]
    loop(*parts[0], *arguments)
    for future in futures:
        future.result()


def _on_team(
    library: ctypes.CDLL, loop: Callable[..., None], parts: list[tuple[int, int]], arguments: tuple[Any, ...]
) -> None:
    """As an OpenMP region of a thread a part; a team may turn out smaller, so each takes parts until all are done."""
    waiting = iter(parts)
    failed: list[BaseException] = []

    def work(_: Any) -> None:
        try:
            while part := next(waiting, None):  # atomic, under Python's lock
                loop(*part, *arguments)
        except BaseException as error:  # must not pass through OpenMP's frames; raised below
            failed.append(error)

    library.GOMP_parallel(_REGION(work), None, ctypes.c_uint(len(parts)), ctypes.c_uint(0))
    if failed:
        raise failed[0]
