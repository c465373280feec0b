"""Which patches a step sees: a function of the step alone, whatever the number of processes that share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler

__all__ = ["SharedCases", "StepBatches"]


class StepBatches(Sampler[list[int]]):
    """Batches of indices: step s sees s * size ... (s + 1) * size - 1, of which every process takes its part.

    Args:
        steps: of an epoch.
        size: patches of a step over all processes.
        position: number of finished steps since the training began, asked when loading starts; inside an epoch only
            its remaining steps are given. Lightning's own counter comes too late: on resuming, worker processes load
            the first batches before it is restored.
        rank, ranks: this process and the number of processes.

    Raises:
        ValueError: the processes cannot share a batch equally.
    """

    def __init__(self, steps: int, size: int, position: Callable[[], int], rank: int = 0, ranks: int = 1) -> None:
        if size % ranks:
            raise ValueError(f"a batch of {size} cannot be shared equally by {ranks} processes")
        self.steps, self.size, self.position, self.rank, self.ranks = steps, size, position, rank, ranks

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        start = self.position()
        share = self.size // self.ranks
        for step in range(start, (start // self.steps + 1) * self.steps):
            first = step * self.size + self.rank * share
            yield list(range(first, first + share))


class SharedCases(Sampler[int]):
    """Every case once over all processes: case i belongs to process i modulo `ranks`.

    A process without any takes the first case again, as Lightning wants something of everyone; see `gather_cases`.
    """

    def __init__(self, cases: int, rank: int = 0, ranks: int = 1) -> None:
        self.mine = range(rank, cases, ranks) or range(1)

    def __len__(self) -> int:
        return len(self.mine)

    def __iter__(self) -> Iterator[int]:
        return iter(self.mine)
