"""Which items an epoch draws, known from the number of finished epochs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler

__all__ = ["EpochSampler"]


class EpochSampler(Sampler[int]):
    """Indices epoch * size ... (epoch + 1) * size - 1.

    Args:
        size: items per epoch.
        current_epoch: number of finished epochs, asked when loading of an epoch starts. Lightning's own counter and
            its `set_epoch` come too late: on resuming, worker processes load the first batches before.
    """

    def __init__(self, size: int, current_epoch: Callable[[], int]) -> None:
        self.size, self.current_epoch = size, current_epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        start = self.current_epoch() * self.size
        return iter(range(start, start + self.size))
