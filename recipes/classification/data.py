"""From picture sets to batches: the split, one size and scale for all pictures, and random changes in training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import AugmentConfig, ClassifyTrainConfig, DataConfig
from ssmvision.recipes.classification.pictures import Pictures, PictureSets
from ssmvision.recipes.classification.sources import open_sets
from ssmvision.recipes.segmentation.batches import SharedCases, StepBatches
from ssmvision.recipes.segmentation.stopping import outlive_signals

__all__ = [
    "Scale",
    "TrainingPictures",
    "WholePictures",
    "measure_scale",
    "open_data",
    "shuffled",
    "split_sets",
    "training_loader",
    "whole_loader",
]

# Pictures that mean and deviation are measured on, at most.
MEASURED = 2000
SHARED_SEED, ORDER_SEED = 3, 4


@dataclass(frozen=True)
class Scale:
    """What is done to every picture before the network sees it.

    Args:
        size: height and width in pixels.
        mean, std: of each channel of the training pictures in [0, 1], which become 0 and 1.
        fit: see `DataConfig.fit`.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: Literal["crop", "squash"] = "crop"

    def coloured(self, picture: NDArray[Any]) -> NDArray[Any]:
        """(H, W, C) with as many channels as `mean` has: gray is repeated, colour is weighted by its luminance."""
        channels = len(self.mean)
        picture = picture[..., None] if picture.ndim == 2 else picture
        if picture.shape[2] == channels:
            return picture
        if picture.shape[2] == 1:
            return np.repeat(picture, channels, axis=2)
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY))[..., None]

    def fitted(self, picture: NDArray[Any]) -> NDArray[Any]:
        """(H, W, C) at `size`."""
        height, width = self.size
        if picture.shape[:2] == (height, width):
            return picture
        if self.fit == "squash":
            return _resized(picture, height, width)
        factor = max(height / picture.shape[0], width / picture.shape[1])
        rows, columns = (max(n, round(factor * m)) for n, m in zip(self.size, picture.shape[:2], strict=True))
        top, left = (rows - height) // 2, (columns - width) // 2
        return _resized(picture, rows, columns)[top : top + height, left : left + width]

    def normalised(self, picture: Tensor) -> Tensor:
        """(C, H, W), uint8 or float32 in [0, 1], as the network takes it."""
        values = picture.float() / 255 if picture.dtype == torch.uint8 else picture.float()
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (values - mean) / std


def _resized(picture: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    smaller = height <= picture.shape[0] and width <= picture.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    out = cv2.resize(np.ascontiguousarray(picture), (width, height), interpolation=how)
    return out if out.ndim == 3 else out[..., None]


def open_data(config: DataConfig) -> PictureSets:
    """The data's parts, with validation pictures held out where the data have none, and as few as are asked for.

    Raises:
        UserError: see `open_sets` and `split_sets`.
    """
    return split_sets(open_sets(config), config)


def split_sets(sets: PictureSets, config: DataConfig) -> PictureSets:
    """See `open_data`.

    Raises:
        UserError: a class has too few pictures to be split.
    """
    training, validation = sets.training, sets.validation
    if validation is None and config.validation_fraction > 0:
        training, validation = _halves(training, config.validation_fraction, config.split_seed)
    if config.train_pictures is not None and config.train_pictures < len(training):
        training, _ = _halves(training, len(training) - config.train_pictures, config.split_seed)
    return PictureSets(sets.classes, training, validation, sets.test)


def _halves(pictures: Pictures, second: float, seed: int) -> tuple[Pictures, Pictures]:
    """Splits the cases, whose class is that of most of their pictures."""
    case, labels = _cases(pictures)
    if isinstance(second, int) and len(labels) < len(pictures):
        second = round(second / len(pictures) * len(labels))
    try:
        parts = train_test_split(np.arange(len(labels)), test_size=second, random_state=seed, stratify=labels)
    except ValueError as error:
        kind = "pictures" if len(labels) == len(pictures) else "cases (volumes, patients or folders)"
        raise UserError(
            f"data.validation_fraction, data.train_pictures: {len(labels)} {kind} cannot be split so ({error}); "
            "give other numbers, or more of every class"
        ) from error
    first, other = (pictures.subset(np.flatnonzero(np.isin(case, part))) for part in parts)
    return first, other


def _cases(pictures: Pictures) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The number of every picture's case, and every case's class."""
    if pictures.cases is None:
        return np.arange(len(pictures)), pictures.labels
    numbers = {name: i for i, name in enumerate(dict.fromkeys(pictures.cases))}
    case = np.asarray([numbers[name] for name in pictures.cases])
    counts = np.zeros((len(numbers), int(pictures.labels.max()) + 1))
    np.add.at(counts, (case, pictures.labels), 1)
    return case, counts.argmax(1)


def measure_scale(pictures: Pictures, config: ClassifyTrainConfig) -> Scale:
    """Size, and mean and deviation of each channel over the training pictures (evenly chosen ones, if many)."""
    chosen = np.linspace(0, len(pictures) - 1, min(len(pictures), MEASURED)).round().astype(int)
    first = pictures.read(int(chosen[0]))
    channels = config.data.channels or (1 if first.ndim == 2 or first.shape[2] == 1 else 3)
    size = config.img_size or (int(first.shape[0]), int(first.shape[1]))
    plain = Scale(size, (0.0,) * channels, (1.0,) * channels, config.data.fit)
    sums, squares = np.zeros(channels), np.zeros(channels)
    for index in chosen:
        picture = plain.fitted(plain.coloured(pictures.read(int(index))))
        values = picture / 255 if picture.dtype == np.uint8 else picture.astype(np.float64)
        sums += values.mean((0, 1))
        squares += (values**2).mean((0, 1))
    mean = sums / len(chosen)
    std = np.sqrt(np.maximum(squares / len(chosen) - mean**2, 0))
    if (std == 0).any():
        raise UserError(f"data.root: {config.data.root}: all training pictures are of one same gray; look at the files")
    return Scale(size, tuple(round(float(v), 6) for v in mean), tuple(round(float(v), 6) for v in std), config.data.fit)


def make_pipeline(config: AugmentConfig, size: Sequence[int]) -> Callable[..., dict[str, Any]]:
    """The random changes by the library that the settings name."""
    common = {
        name: value
        for name, value in asdict(config).items()
        if name in ("crop_scale", "shift", "flip_axes", "rotate_degrees", "brightness", "erase")
    }
    if config.library == "torchvision":
        from ssmvision.recipes.data import torchvision_v2

        return torchvision_v2.Pipeline(torchvision_v2.classification(size, policy=config.policy, **common))
    from ssmvision.recipes.data import albumentations

    return albumentations.Pipeline(albumentations.classification(size, **common))


def shuffled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of a number of pictures in an epoch."""
    return np.random.default_rng([seed, ORDER_SEED, epoch]).permutation(count)


class TrainingPictures(Dataset[dict[str, Any]]):
    """An endless sequence: epoch after epoch, each a shuffling of all pictures by seed and epoch alone.

    Args:
        pictures: to learn from.
        scale: what is done to each.
        augment: random changes, drawn by seed and index alone.
        seed: of both.
    """

    def __init__(self, pictures: Pictures, scale: Scale, augment: AugmentConfig, seed: int) -> None:
        self.pictures, self.scale, self.seed = pictures, scale, seed
        self.whole = augment.crop_scale >= 1
        self.pipeline = make_pipeline(augment, scale.size)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Indices of the pictures in the order of an epoch."""
        if self._order[0] != epoch:
            self._order = (epoch, shuffled(self.seed, epoch, len(self.pictures)))
        return self._order[1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The picture as "image" (C, H, W) float32, and its "label"."""
        epoch, place = divmod(index, len(self.pictures))
        chosen = int(self.order(epoch)[place])
        picture = self.scale.coloured(self.pictures.read(chosen))
        picture = self.scale.fitted(picture) if self.whole else picture
        seed = int(np.random.SeedSequence([self.seed, SHARED_SEED, index]).generate_state(1)[0])
        image = self.pipeline(picture, seed=seed % 2**31)["image"]
        return {"image": self.scale.normalised(image), "label": int(self.pictures.labels[chosen])}


class WholePictures(Dataset[dict[str, Any]]):
    """Every picture once, without random changes."""

    def __init__(self, pictures: Pictures, scale: Scale) -> None:
        self.pictures, self.scale = pictures, scale

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The picture as "image" (C, H, W) float32, and its "label"."""
        picture = self.scale.fitted(self.scale.coloured(self.pictures.read(index)))
        image = torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, -1, 0)))
        return {"image": self.scale.normalised(image), "label": int(self.pictures.labels[index])}


def training_loader(
    dataset: TrainingPictures,
    config: ClassifyTrainConfig,
    steps_per_epoch: int,
    position: Callable[[], int],
    rank: int = 0,
    ranks: int = 1,
) -> DataLoader[Any]:
    """Batches of training pictures; `position` as in `StepBatches`."""
    workers = config.data.num_workers
    return DataLoader(
        dataset,
        batch_sampler=StepBatches(steps_per_epoch, config.trainer.batch_size, position, rank, ranks),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=outlive_signals,
        # An own one: whether loading starts before or after a step is seeded differs after resuming.
        generator=torch.Generator(),
    )


def whole_loader(
    pictures: Pictures, scale: Scale, batch_size: int, workers: int = 0, rank: int = 0, ranks: int = 1
) -> DataLoader[Any]:
    """Every picture once over all processes, see `SharedCases`."""
    return DataLoader(
        WholePictures(pictures, scale),
        batch_size=batch_size,
        sampler=SharedCases(len(pictures), rank, ranks),
        num_workers=workers,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),
    )
