"""Runs one function over many cases in worker processes; a failure is told by case, also when a worker is killed."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from ssmvision.errors import UserError

__all__ = ["Outcome", "call_apart", "count_workers", "map_cases"]

T = TypeVar("T")
R = TypeVar("R")
MAX_WORKERS = 8
Tasks = Sequence[tuple[str, T]]


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """Result of one case, or what went wrong with it.

    Args:
        case: name of the case.
        value: what the function returned; None where it failed.
        problem: message for the user; None on success.
    """

    case: str
    value: R | None = None
    problem: str | None = None


def count_workers(setting: int, cases: int) -> int:
    """Worker processes for a setting: as many as asked for, 0 for one per CPU core and at most 8, never idle ones.

    Raises:
        UserError: the setting is below 0.
    """
    if setting < 0:
        raise UserError(f"workers: {setting} is not possible; give 0 (one per core) or more")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(setting or min(cores, MAX_WORKERS), cases))


def map_cases(
    function: Callable[[T], R], tasks: Tasks[T], workers: int, done: Callable[[str], None] = lambda case: None
) -> list[Outcome[R]]:
    """Calls `function` on every task.

    A `UserError` becomes the case's problem. A worker that dies (killed for memory, crashed in a library) becomes the
    problem of the case that it was at work on, and another one takes its place.

    Args:
        function: importable by name, and light to import.
        tasks: name of each case and its argument.
        workers: processes; 1 runs everything in this one.
        done: called with the name of each finished case.

    Returns:
        One outcome per task, in the order of the tasks.

    Raises:
        RuntimeError: any other exception in a worker, with its traceback.
    """
    if workers <= 1:
        return [_here(function, task, done) for task in tasks]
    outcomes: dict[int, Outcome[R]] = {}
    waiting = iter(range(len(tasks)))
    with _crew(function, min(workers, len(tasks))) as crew:
        busy: dict[Connection, int] = {}
        for pipe in list(crew):
            _give(pipe, busy, waiting, tasks)
        while busy:
            for pipe in cast("list[Connection]", wait(list(busy))):
                index = busy.pop(pipe)
                outcomes[index] = _receive(crew, pipe, tasks[index][0], len(crew))
                done(tasks[index][0])
                _give(pipe if pipe in crew else crew.replace(), busy, waiting, tasks)
    return [outcomes[i] for i in range(len(tasks))]


def call_apart(call: Callable[[], R], case: str) -> R:
    """Calls a function in a process of its own, so that nothing it leaves behind reaches later calls.

    Args:
        call: can be pickled.
        case: name for messages.

    Raises:
        UserError: from the function, or the process died.
        RuntimeError: any other exception in the process, with its traceback.
    """
    with _crew(_call, 1) as crew:
        (pipe,) = crew
        pipe.send(call)
        outcome = _receive(crew, pipe, case, 1)
    if outcome.problem is not None:
        raise UserError(outcome.problem)
    return cast(R, outcome.value)


def _call(call: Callable[[], R]) -> R:
    return call()


def _here(function: Callable[[T], R], task: tuple[str, T], done: Callable[[str], None]) -> Outcome[R]:
    case, argument = task
    try:
        outcome = Outcome(case, function(argument))
    except UserError as error:
        outcome = Outcome(case, problem=str(error))
    done(case)
    return outcome


class _Crew(dict[Connection, BaseProcess]):
    """Worker processes by the pipe to each."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function
        # A fork would copy the threads' locks of libraries that this process has loaded.
        self.context = get_context("spawn")

    def replace(self) -> Connection:
        """Starts one more worker."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(self.function, theirs), daemon=True)
        process.start()
        theirs.close()  # so that the worker's end is the only one, and its death closes the pipe
        self[ours] = process
        return ours


@contextmanager
def _crew(function: Callable[[Any], Any], size: int) -> Iterator[_Crew]:
    crew = _Crew(function)
    try:
        for _ in range(size):
            crew.replace()
        yield crew
    finally:
        for pipe, process in crew.items():
            pipe.close()
            process.terminate()
            process.join()


def _work(function: Callable[[Any], Any], pipe: Connection) -> None:
    """A worker's life: an argument in, an answer out, until the pipe closes."""
    while True:
        try:
            argument = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[str, Any]
        try:
            answer = ("value", function(argument))
        except UserError as error:
            answer = ("problem", str(error))
        except Exception:
            answer = ("bug", traceback.format_exc())
        pipe.send(answer)


def _give(pipe: Connection, busy: dict[Connection, int], waiting: Iterator[int], tasks: Tasks[Any]) -> None:
    """Hands the next task to a worker, if there is one left."""
    index = next(waiting, None)
    if index is not None:
        busy[pipe] = index
        try:
            pipe.send(tasks[index][1])
        except BrokenPipeError:
            return  # it died before; receiving from it will say so


def _receive(crew: _Crew, pipe: Connection, case: str, workers: int) -> Outcome[Any]:
    try:
        kind, content = pipe.recv()
    except (EOFError, ConnectionResetError):
        process = crew.pop(pipe)
        process.join()
        pipe.close()
        return Outcome(case, problem=_cause_of_death(case, process.exitcode, workers))
    if kind == "bug":
        raise RuntimeError(f"case {case!r} failed in a worker:\n{content}")
    return Outcome(case, content) if kind == "value" else Outcome(case, problem=content)


def _cause_of_death(case: str, code: int | None, workers: int) -> str:
    how = f"ended with exit code {code}"
    if code is not None and code < 0:
        how = f"was killed by signal {-code} ({signal.Signals(-code).name})"
    advice = f"try --workers 1 (now {workers})" if workers > 1 else "look at the file"
    if code == -signal.SIGKILL:
        advice = f"most likely the memory ran out: use fewer workers (now {workers}) or a machine with more memory"
    return f"case {case!r}: the worker process that read it {how}; {advice}"
