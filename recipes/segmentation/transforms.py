"""MONAI transforms from a case to an augmented training patch, and the datasets that apply them.

Every patch is a function of (seed, index) alone. Resuming, or loading in several workers, therefore sees the very
patches that an uninterrupted run sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from monai.data.meta_tensor import MetaTensor
from monai.transforms import (
    ClassesToIndicesd,
    Compose,
    EnsureChannelFirstd,
    MapTransform,
    RandAdjustContrastd,
    RandCropByLabelClassesd,
    RandFlipd,
    RandGaussianNoised,
    RandRotated,
    RandScaleIntensityFixedMeand,
    SpatialPadd,
    Transform,
)
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ssmvision.recipes.segmentation.config import AugmentConfig
from ssmvision.recipes.segmentation.datalist import Case
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.spacing import case_spacing
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map

__all__ = ["CaseDataset", "EpochSampler", "PatchDataset", "ReadCase", "patch_transforms", "prepare_transforms"]

KEYS = ("image", "label")
INDICES = "label_cls_indices"
MAX_INDICES = 10_000


class ReadCase(Transform):
    """Reads and preprocesses a `Case`.

    It becomes {"image": (C, X, Y, Z) float32, "label": (1, X, Y, Z) int64, "spacing_mm": (3,) float32, "case": id}.

    Args:
        preprocessing: grid and intensity scale.
        channels: names of the image channels.
        labels: allowed label ids.
    """

    def __init__(self, preprocessing: Preprocessing, channels: Sequence[str], labels: Sequence[int]) -> None:
        self.preprocessing, self.channels, self.labels = preprocessing, tuple(channels), tuple(labels)

    def __call__(self, case: Case) -> dict[str, Any]:
        """Reads one case; see the class."""
        volume = read_image(case.images, self.channels)
        labels, _ = read_label_map(cast(Any, case.label), self.labels, volume.grid)
        affine = volume.grid.affine
        image = self.preprocessing.image(volume.data, affine)
        return {
            "image": image,
            "label": self.preprocessing.label(labels, affine),
            "spacing_mm": case_spacing(image, 3),
            "case": case.id,
        }


class PlainTensors(MapTransform):
    """Drops MONAI's metadata, which batches do not need: image float32, label int64."""

    def __call__(self, data: Any) -> dict[str, Tensor]:
        """Keeps image, label and spacing only."""
        image, label = (data[key].as_tensor() if isinstance(data[key], MetaTensor) else data[key] for key in KEYS)
        tensors = {"image": image.float().contiguous(), "label": label.long().contiguous()}
        return tensors | {"spacing_mm": data["spacing_mm"]}


def prepare_transforms(read: ReadCase, patch_size: Sequence[int], classes: int) -> Compose:
    """The part without chance: read, pad to the patch (image with 0, the mean), list voxels per class."""
    size = (*patch_size, *[1] * (3 - len(patch_size)))
    return Compose(
        [
            read,
            EnsureChannelFirstd(KEYS, channel_dim=0),
            SpatialPadd(KEYS, spatial_size=size),
            ClassesToIndicesd("label", num_classes=classes, max_samples_per_class=MAX_INDICES),
        ]
    )


def intensity_transforms(config: AugmentConfig) -> list[Transform]:
    """Noise, contrast and gamma changes of the normalised image."""
    p = config.probability
    return [
        RandGaussianNoised("image", prob=p, std=config.noise_std, sample_std=True),
        RandScaleIntensityFixedMeand("image", factors=config.scale, prob=p),
        RandAdjustContrastd("image", prob=p, gamma=config.gamma, retain_stats=True),
    ]


def patch_transforms(
    config: AugmentConfig, patch_size: Sequence[int], classes: int, spacing_mm: Sequence[float]
) -> Compose:
    """The random part for 3D patches.

    A patch is centred on a voxel of a class drawn uniformly with probability `config.foreground_fraction`, else on a
    background voxel.

    Args:
        config: the augmentation.
        patch_size: three sizes in voxels.
        classes: number of labels, background included.
        spacing_mm: voxel size; rotation is about the axis with the largest one.
    """
    share = config.foreground_fraction
    # Never exactly 0: a case may consist of background, or of one class, alone.
    ratios = [max(ratio, 1e-9) for ratio in (1 - share, *[share / (classes - 1)] * (classes - 1))]
    crop = RandCropByLabelClassesd(
        KEYS, "label", patch_size, ratios=ratios, num_classes=classes, indices_key=INDICES, warn=False
    )
    spatial: list[Transform] = []
    if config.rotate_degrees > 0:
        angle: Any = {f"range_{'xyz'[int(np.argmax(spacing_mm))]}": math.radians(config.rotate_degrees)}
        spatial.append(RandRotated(KEYS, prob=config.probability, mode=("bilinear", "nearest"), **angle))
    axes = range(len(patch_size)) if config.flip_axes is None else config.flip_axes
    spatial += [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in axes]
    return Compose([crop, *spatial, *intensity_transforms(config), PlainTensors(KEYS)])


class CaseDataset(Dataset[dict[str, Any]]):
    """Preprocessed whole cases, kept in memory if asked."""

    def __init__(self, cases: Sequence[Case], prepare: Any, cache: bool) -> None:
        self.cases, self.prepare, self.cache = tuple(cases), prepare, cache
        self.kept: dict[int, dict[str, Any]] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index not in self.kept:
            prepared = self.prepare(self.cases[index])
            if not self.cache:
                return cast("dict[str, Any]", prepared)
            self.kept[index] = prepared
        return self.kept[index]


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Endless training patches: item i is drawn with a generator seeded by (seed, i), cases in shuffled rounds.

    Args:
        cases: prepared cases.
        augment: random transform with `set_random_state(seed)`.
        seed: of the run.
    """

    def __init__(self, cases: CaseDataset, augment: Any, seed: int) -> None:
        self.cases, self.augment, self.seed = cases, augment, seed

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        n = len(self.cases)
        order = np.random.default_rng([self.seed, index // n]).permutation(n)
        self.augment.set_random_state(seed=int(np.random.SeedSequence([self.seed, 1, index]).generate_state(1)[0]))
        result = self.augment(dict(self.cases[int(order[index % n])]))
        return cast("dict[str, Tensor]", result[0] if isinstance(result, list) else result)


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
