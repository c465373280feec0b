"""Shares a compiled loop out to as many threads as PyTorch is set to use."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

__all__ = ["share_out"]


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork, so that a forked process (a data loader's worker) gets its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="ssmvision")


def share_out(loop: Callable[..., None], tasks: int, *arguments: Any) -> None:
    """Calls loop(first, last, *arguments) on parts of range(tasks) side by side.

    Args:
        loop: releases Python's lock; its result must not depend on how the tasks are cut.
        tasks: how many.
        arguments: the rest of what `loop` takes.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads <= 1:
        loop(0, tasks, *arguments)
        return
    edges = [tasks * i // threads for i in range(threads + 1)]
    parts = list(pairwise(edges))
    futures = [_pool(os.getpid(), threads - 1).submit(loop, *part, *arguments) for part in parts[1:]]
    loop(*parts[0], *arguments)
    for future in futures:
        future.result()
