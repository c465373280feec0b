"""Whole data sets as one tensor on the device, changed at random a batch at a time: `augment.library: batched`.

One core changes about a thousand pictures a second, small networks on a GPU take a hundred thousand. Here a batch is
one gather out of a tensor that holds all pictures, so that nothing is left for the core to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import AugmentConfig, ClassifyTrainConfig
from ssmvision.recipes.classification.data import (
    SHARED_SEED,
    Scale,
    TrainingPictures,
    shuffled,
    training_loader,
    whole_loader,
)
from ssmvision.recipes.classification.pictures import ArrayReader, Chosen, Pictures
from ssmvision.recipes.segmentation.batches import SharedCases, StepBatches

__all__ = [
    *("ChangedPictures", "ResidentPictures", "change", "stacked"),
    *("training_batches", "whole_batches"),
]

MAX_BYTES = 2**33
# Share of the area and proportions of a blanked rectangle (arXiv 1708.04896), as in torchvision's RandomErasing.
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
# Numbers drawn for a picture: two shifts, two flips, and of the blanked rectangle whether, area, proportions and place.
DRAWN = 9


def stacked(pictures: Pictures, scale: Scale, device: torch.device) -> Tensor:
    """All pictures as the network's size has them, (N, H, W, C), of the type that the data have.

    Raises:
        UserError: together they take more than 8 GiB.
    """
    first = scale.fitted(scale.coloured(pictures.read(0)))
    needed = first.nbytes * len(pictures)
    if needed > MAX_BYTES:
        raise UserError(
            f"augment.library: batched would keep {len(pictures)} pictures on the device, {needed / 2**30:.1f} GiB; it "
            f"takes up to {MAX_BYTES / 2**30:.0f}; give another library or a smaller img_size"
        )
    array = _array(pictures.read)
    if array is not None:
        array = array[..., None] if array.ndim == 3 else array
        if array.shape[1:] == first.shape:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)
    whole = np.empty((len(pictures), *first.shape), first.dtype)
    for index in range(len(pictures)):
        whole[index] = scale.fitted(scale.coloured(pictures.read(index)))
    return torch.from_numpy(whole).to(device)


def _array(read: Callable[[int], NDArray[Any]]) -> NDArray[Any] | None:
    """The array that a reader reads from, if it does."""
    if isinstance(read, ArrayReader):
        return read.array
    if isinstance(read, Chosen) and (inner := _array(read.read)) is not None:
        chosen: NDArray[Any] = inner[read.indices]
        return chosen
    return None


def change(pictures: Tensor, chosen: Tensor, drawn: Tensor, augment: AugmentConfig) -> Tensor:
    """Pictures mirrored, then shifted by reflection, then blanked.

    Args:
        pictures: (N, H, W, C).
        chosen: (B,) int64.
        drawn: (B, 9) float64 in [0, 1).
        augment: which changes.

    Returns:
        (B, H, W, C).
    """
    height, width = pictures.shape[1:3]
    rows, columns = (
        _places(size, drawn[:, axis], drawn[:, 2 + axis], augment.shift, axis in augment.flip_axes)
        for axis, size in enumerate((height, width))
    )
    out = pictures[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
    if augment.erase:
        out = out.masked_fill(_blanked(height, width, drawn[:, 4:], augment.erase)[..., None], 0)
    return out


def _places(size: int, shifted: Tensor, mirrored: Tensor, shift: int, flip: bool) -> Tensor:
    """(B, size): where each row (or column) of the changed pictures comes from."""
    places = torch.arange(size, device=shifted.device).expand(len(shifted), size)
    if shift:
        places = (places + (shifted * (2 * shift + 1)).long()[:, None] - shift).abs()
        places = size - 1 - (size - 1 - places).abs()
    if flip:
        places = torch.where(mirrored[:, None] < 0.5, size - 1 - places, places)
    return places


def _blanked(height: int, width: int, drawn: Tensor, probability: float) -> Tensor:
    """(B, H, W), true in the rectangle of each picture that gets one."""
    area = height * width * (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * drawn[:, 1])
    low, high = (math.log(value) for value in ERASED_RATIO)
    ratio = torch.exp(low + (high - low) * drawn[:, 2])
    inside = []
    for axis, (size, edge) in enumerate(((height, (area * ratio).sqrt()), (width, (area / ratio).sqrt()))):
        length = edge.round().clamp(1, max(1, size - 1))
        start = (drawn[:, 3 + axis] * (size - length + 1)).floor()
        places = torch.arange(size, device=drawn.device)
        inside.append((places >= start[:, None]) & (places < (start + length)[:, None]))
    used = drawn[:, 0] < probability
    return inside[0][:, :, None] & inside[1][:, None, :] & used[:, None, None]


class ResidentPictures(Dataset[dict[str, Tensor]]):
    """Pictures on a device, of which it makes whole batches.

    Args:
        pictures: all of them are read at once.
        scale: what is done to each.
        device: that holds them.

    Shape:
        A list of indices gives {"image": (B, C, H, W) float32, "label": (B,) int64}.
    """

    def __init__(self, pictures: Pictures, scale: Scale, device: torch.device) -> None:
        self.pictures = stacked(pictures, scale, device)
        self.labels = torch.from_numpy(pictures.labels).to(device)
        self.mean, self.std = (torch.tensor(v, device=device)[:, None, None] for v in (scale.mean, scale.std))
        self.largest = 255.0 if self.pictures.dtype == torch.uint8 else 1.0

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        """These pictures, unchanged."""
        chosen = torch.tensor(indices, device=self.labels.device)
        return self.batch(self.pictures[chosen], self.labels[chosen])

    def batch(self, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """(B, H, W, C) as the network takes it, with the classes."""
        image = pictures.movedim(-1, 1).float() / self.largest
        return {"image": (image - self.mean) / self.std, "label": labels}


class ChangedPictures(ResidentPictures):
    """The endless sequence of `TrainingPictures` with changes of its own, by seed and step alone on every device.

    Args:
        pictures, scale, device: see `ResidentPictures`.
        augment: random changes.
        seed: of the order and of the changes.
        size: pictures of a step over all processes.

    Raises:
        UserError: shifts as large as the pictures.
    """

    def __init__(
        self, pictures: Pictures, scale: Scale, device: torch.device, augment: AugmentConfig, seed: int, size: int
    ) -> None:
        if augment.shift >= min(scale.size):  # more than one reflection
            raise UserError(f"augment.shift: {augment.shift} is not possible; give less than {min(scale.size)} pixels")
        super().__init__(pictures, scale, device)
        self.augment, self.seed, self.size = augment, seed, size
        self._orders: dict[int, NDArray[np.int64]] = {}

    def __getitem__(self, indices: list[int]) -> dict[str, Tensor]:
        """One process's share of a step's pictures, changed."""
        step, place = divmod(indices[0], self.size)
        numbers = np.random.default_rng([self.seed, SHARED_SEED, step]).random((self.size, DRAWN))
        drawn = torch.from_numpy(numbers[place : place + len(indices)]).to(self.labels.device)
        chosen = torch.from_numpy(self._chosen(np.asarray(indices))).to(self.labels.device)
        return self.batch(change(self.pictures, chosen, drawn, self.augment), self.labels[chosen])

    def _chosen(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which pictures the places of the endless sequence are."""
        epochs, places = np.divmod(indices, len(self))
        self._orders = {
            epoch: self._orders[epoch] if epoch in self._orders else shuffled(self.seed, epoch, len(self))
            for epoch in np.unique(epochs).tolist()
        }
        return np.concatenate([order[places[epochs == epoch]] for epoch, order in self._orders.items()])


def training_batches(
    pictures: Pictures,
    scale: Scale,
    config: ClassifyTrainConfig,
    steps_per_epoch: int,
    position: Callable[[], int],
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Any]:
    """Batches of training pictures as the settings have them made; `position` as in `StepBatches`.

    Raises:
        UserError: see `stacked`.
    """
    t = config.trainer
    if config.augment.library != "batched":
        dataset = TrainingPictures(pictures, scale, config.augment, t.seed)
        return training_loader(dataset, config, steps_per_epoch, position, rank, ranks)
    changed = ChangedPictures(pictures, scale, device, config.augment, t.seed, t.batch_size)
    return _loader(changed, StepBatches(steps_per_epoch, t.batch_size, position, rank, ranks))


def whole_batches(
    pictures: Pictures,
    scale: Scale,
    config: ClassifyTrainConfig,
    device: torch.device,
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Any]:
    """Every picture once over all processes, see `SharedCases`.

    Raises:
        UserError: see `stacked`.
    """
    size = config.trainer.batch_size // ranks
    if config.augment.library != "batched":
        return whole_loader(pictures, scale, size, 0, rank, ranks)
    batches = BatchSampler(SharedCases(len(pictures), rank, ranks), size, drop_last=False)
    return _loader(ResidentPictures(pictures, scale, device), batches)


def _loader(data: ResidentPictures, batches: Sampler[list[int]]) -> DataLoader[Any]:
    """Without a batch size, the loader hands the lists of indices on as they are."""
    return DataLoader(data, sampler=batches, batch_size=None, generator=torch.Generator())
