"""Several training processes on one machine: started, told to stop, and ended together."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from itertools import zip_longest
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.stopping import SIGNALS, restored_handlers

__all__ = ["first_of_ranks", "gather_cases", "mean_over_ranks", "rank", "run_ranks"]

T = TypeVar("T")
A = TypeVar("A")
# A process that fails takes the others with it: they would wait for it in vain.
GRACE_SECONDS = 20.0


def rank() -> int:
    """Number of this process among those of a training; 0 where it is the only one."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def gather_cases(mine: list[list[float]], cases: int) -> list[list[float]]:
    """The rows of all processes in the order of the `cases`, which were dealt out by `SharedCases`; collective."""
    if not dist.is_available() or not dist.is_initialized():
        return mine
    parts: list[list[list[float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return [row for rows in zip_longest(*parts) for row in rows if row is not None][:cases]


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of every process's value; collective."""
    if not dist.is_available() or not dist.is_initialized():
        return value
    mean = value.clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def first_of_ranks(text: str) -> str:
    """The first text of a process that is not empty; collective."""
    if not dist.is_available() or not dist.is_initialized():
        return text
    texts = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return next((found for found in texts if found), "")


def run_ranks(work: Callable[[A], T], argument: A, ranks: int, fork: bool = False) -> T:
    """Runs `work(argument)` in `ranks` new processes that Lightning joins to one training; the first one's result.

    SIGTERM and Ctrl-C are passed on to the processes, which end after the running step, and so does this one then.

    Args:
        work: importable function.
        argument: can be pickled, as can the result.
        ranks: number of processes.
        fork: from one process that imports everything once, which CUDA does not survive.

    Raises:
        UserError: what a process raised as such, or a process died.
        RuntimeError: another error, with its traceback.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context: Any = mp.get_context("forkserver" if fork and "forkserver" in mp.get_all_start_methods() else "spawn")
    if fork:
        context.set_forkserver_preload([work.__module__])
    environment = dict(os.environ) | {"NODE_RANK": "0", "WORLD_SIZE": str(ranks)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    pipes = [context.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        context.Process(
            target=_run_rank,
            args=(work, argument, environment | {"LOCAL_RANK": str(r)}, mp.get_start_method(), pipes[r][1]),
        )
        for r in range(ranks)
    ]
    with restored_handlers():
        received = _pass_on(processes)
        try:
            for process in processes:
                process.start()
            outcomes = _outcomes(processes, [receive for receive, _ in pipes])
        finally:
            _end(processes)
    if received:
        raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(128 + received[0])
    return cast(T, _result(processes, outcomes))


def _run_rank(
    work: Callable[[Any], Any], argument: Any, environment: dict[str, str], start_method: str, send: Connection
) -> None:
    os.environ |= environment
    # Else the workers of this process's loader would start as it was started itself, each importing everything anew.
    mp.set_start_method(start_method, force=True)
    try:
        result = work(argument)
        send.send(("result", result if rank() == 0 else None))
    except UserError as error:
        send.send(("error", str(error)))
        sys.exit(2)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _pass_on(processes: list[Any]) -> list[int]:
    """Passes signals on to the processes; the list fills with those that came."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        for process in processes:
            # A terminal sends Ctrl-C to all of them itself; to them a second signal means to stop at once.
            if process.is_alive() and (number != signal.SIGINT or not sys.stdin.isatty()):
                os.kill(process.pid, signal.SIGTERM)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handle)
    return received


def _outcomes(processes: list[Any], pipes: list[Connection]) -> list[tuple[str, Any] | None]:
    """What the processes sent before they ended; once one has failed, those still running are ended after a while."""
    outcomes: list[tuple[str, Any] | None] = [None] * len(processes)
    deadline = float("inf")
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        wait([*(p.sentinel for p in processes if p.is_alive()), *(c for c in pipes if not c.closed)], timeout=1.0)
        for i, pipe in enumerate(pipes):
            if not pipe.closed and pipe.poll():
                outcomes[i] = pipe.recv()
                pipe.close()
        if deadline == float("inf") and any(process.exitcode for process in processes):
            deadline = time.monotonic() + GRACE_SECONDS
    return outcomes


def _end(processes: list[Any]) -> None:
    for end in ("terminate", "kill"):
        for process in processes:
            if process.is_alive():
                getattr(process, end)()
        for process in processes:
            if process.pid is not None:
                process.join(5.0)


def _result(processes: list[Any], outcomes: list[tuple[str, Any] | None]) -> Any:
    for outcome in outcomes:
        if outcome is not None and outcome[0] == "error":
            raise UserError(outcome[1])
    for number, process in enumerate(processes):
        if process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            raise UserError(
                f"training process {number} of {len(processes)} was killed by {name}"
                + (" (often for lack of memory)" if name == "SIGKILL" else "")
                + "; continue with the same command and --resume"
            )
    failed = [number for number, process in enumerate(processes) if process.exitcode]
    if failed or outcomes[0] is None:
        raise RuntimeError(f"training process {failed[:1] or [0]} failed; its traceback is above")
    return outcomes[0][1]
