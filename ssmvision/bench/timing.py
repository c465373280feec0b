"""Times work in turns, so that all see the same clocks: graphs, eager loops and the host of a GPU, or a CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch

__all__ = ["capture", "host_us", "in_rounds_us", "in_turns_on_cpu_ms", "in_turns_us", "peak_mib", "side_stream"]

WARM_UP = 3
FLUSH_BYTES = 256 * 2**20  # more than any L2 cache


def side_stream() -> AbstractContextManager[object]:
    """A stream of its own: what is captured must have been created on the stream that captures."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)


def capture(work: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture work on the current stream, after a warm-up that compiles what it needs."""
    for _ in range(WARM_UP):
        work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        work()
    return graph


def in_turns_us(works: Sequence[Callable[[], object]], budget_ms: float = 100.0) -> list[float]:
    """Median microseconds of each work on the GPU, from a cold L2 cache, the works taking turns.

    Args:
        works: what to time; graph replays, so that the host does not matter.
        budget_ms: about how long the slowest may run in all; it gets 10 turns at least, 200 at most.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    slowest = max(_once_us(work, flush) for work in works)
    turns = int(min(max(budget_ms * 1e3 / slowest, 10), 200))
    marks = [[_marked(work, flush) for work in works] for _ in range(turns)]
    torch.cuda.synchronize()
    elapsed = [[float(start.elapsed_time(end)) * 1e3 for start, end in turn] for turn in marks]
    return [statistics.median(times) for times in zip(*elapsed, strict=True)]


def _marked(work: Callable[[], object], flush: torch.Tensor) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    flush.zero_()  # long enough for the host to queue what follows
    start.record()
    work()
    end.record()
    return start, end


def _once_us(work: Callable[[], object], flush: torch.Tensor) -> float:
    work()
    start, end = _marked(work, flush)
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e3


def in_rounds_us(works: Sequence[Callable[[], object]], budget_ms: float = 100.0, rounds: int = 5) -> list[float]:
    """Microseconds a call of each work in a row of calls, as a loop of a program sees it: host and GPU overlap.

    Args:
        works: what to time; they take turns, a row of calls each.
        budget_ms: about how long a row is; it has 2 calls at least, 50 at most.
        rounds: turns of each; the median counts.
    """
    calls = [int(min(max(budget_ms * 1e3 / max(_row_us(work, 2), 1.0), 2), 50)) for work in works]
    times = [[_row_us(work, n) for work, n in zip(works, calls, strict=True)] for _ in range(rounds)]
    return [statistics.median(row) for row in zip(*times, strict=True)]


def _row_us(work: Callable[[], object], calls: int) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls * 1e6


def host_us(work: Callable[[], object], calls: int = 20) -> float:
    """Median microseconds that a call keeps the host, the GPU running behind."""
    for _ in range(WARM_UP):
        work()
    times = []
    for _ in range(calls):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(times) * 1e6


def peak_mib(work: Callable[[], object], base: int) -> float:
    """Most memory that a call holds at once, above `base` bytes that were held before its inputs were made."""
    work()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - base) / 2**20


def in_turns_on_cpu_ms(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every round; in turns, so that a busy moment meets all of them.

    The second of two calls counts: the first wakes the threads and fills the caches that the one before it has emptied.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, step in contenders.items():
            step()
            start = time.perf_counter()
            step()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times
