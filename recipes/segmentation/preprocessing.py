"""Brings a volume to the grid and intensity scale that the network sees, and its logits back."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import DataConfig
from ssmvision.recipes.segmentation.datalist import Dataset
from ssmvision.recipes.segmentation.volumes import read_image, read_label_map

if TYPE_CHECKING:
    # Ten seconds to import. Prediction turns and resamples by `ssmvision.recipes.segmentation.resampling` without it.
    from monai.data.meta_tensor import MetaTensor

__all__ = ["ChannelScale", "Preprocessing", "fit_preprocessing"]

SAMPLES_PER_CASE = 100_000


@dataclass(frozen=True)
class ChannelScale:
    """Intensity scale of one channel.

    Args:
        kind: "ct" clips to [low, high], then subtracts `mean` and divides by `std`; "zscore" takes mean and deviation
            of each image, "zscore_nonzero" of its part that is not zero in every channel, holes filled (zero outside);
            "rescale" brings each image's smallest value to 0 and its largest to 1; "none" leaves it as it is.
        low, high, mean, std: for "ct", in the image's own unit.
    """

    kind: Literal["zscore", "zscore_nonzero", "ct", "rescale", "none"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Preprocessing:
    """What happens to every image before the network; part of the saved model.

    Args:
        orientation: axis codes to turn to, or None.
        spacing_mm: voxel size to resample to per axis after turning (a value of -1 keeps that axis), or None.
        scales: one per channel.
        rules: "linear" resamples linearly, then scales. "nnunet" cuts off what is zero in every channel, scales, then
            resamples by cubic splines (slices that are thick stay whole, see `ssmvision.recipes.preprocessing.resize`).
            What a model was trained by, it predicts by.
    """

    orientation: str | None
    spacing_mm: tuple[float, ...] | None
    scales: tuple[ChannelScale, ...]
    rules: Literal["linear", "nnunet"] = "linear"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_json`."""
        spacing = values["spacing_mm"]
        scales = tuple(ChannelScale(**scale) for scale in values["scales"])
        # Models saved before there were two sets of rules are of the first.
        rules = values.get("rules", "linear")
        if rules not in ("linear", "nnunet"):
            raise ValueError(f"preprocessing rules are {rules!r}, this version knows linear and nnunet")
        return cls(values["orientation"], None if spacing is None else tuple(spacing), scales, rules)

    def image(self, data: NDArray[np.float32] | Tensor, affine: NDArray[np.float64]) -> MetaTensor:
        """Image (C, X, Y, Z) with its affine in mm, turned, resampled linearly and scaled; float32.

        This, `label` and `restore` work by the rules "linear" alone, as the others go by more than one volume: see
        `ssmvision.recipes.preprocessing.case.prepare`, which works by both.

        Raises:
            ValueError: the rules are others.
        """
        return cast("MetaTensor", self.scale(self._regrid(data, affine, "bilinear")))

    def scale(self, turned: Tensor) -> Tensor:
        """Intensities of an image (C, X, Y, Z) that is on the model's grid already brought to the model's scale."""
        inside = object_mask(turned) if any(scale.kind == "zscore_nonzero" for scale in self.scales) else None
        parts = [scale_channel(part, scale, inside) for part, scale in zip(turned.split(1), self.scales, strict=True)]
        return torch.cat(parts)

    def label(self, data: NDArray[np.int32] | Tensor, affine: NDArray[np.float64]) -> MetaTensor:
        """Label map (X, Y, Z) as (1, X, Y, Z) int64 on the grid of `image`, resampled by nearest neighbour."""
        turned = self._regrid(torch.as_tensor(data)[None].float(), affine, "nearest")
        return cast("MetaTensor", turned.round().long())

    def restore(self, logits: Tensor, image: MetaTensor) -> Tensor:
        """Logits (K, ...) on the grid of `image` brought to the stored grid: resampled linearly, turned exactly."""
        self._check_linear()
        from monai.data.meta_tensor import MetaTensor

        plain = logits.as_tensor() if isinstance(logits, MetaTensor) else logits
        result = MetaTensor(plain.float(), affine=image.affine)
        result.applied_operations = copy.deepcopy(image.applied_operations)
        for transform in reversed(grid_transforms(self.orientation, self.spacing_mm, "bilinear")):
            result = transform.inverse(result)
        return result.as_tensor()

    def _check_linear(self) -> None:
        if self.rules != "linear":
            raise ValueError(f"preprocessing by the rules {self.rules!r}: use recipes.preprocessing.case.prepare")

    def _regrid(self, data: Any, affine: NDArray[np.float64], mode: str) -> MetaTensor:
        self._check_linear()
        from monai.data.meta_tensor import MetaTensor

        image = MetaTensor(torch.as_tensor(data), affine=torch.as_tensor(affine))
        for transform in grid_transforms(self.orientation, self.spacing_mm, mode):
            image = transform(image)
        return image


@lru_cache(maxsize=32)
def grid_transforms(orientation: str | None, spacing_mm: tuple[float, ...] | None, mode: str) -> tuple[Any, ...]:
    """Transforms to the model's grid. Cached because MONAI inverts only by the very object that was applied."""
    from monai.transforms import Orientation, Spacing

    transforms: list[Any] = []
    if orientation is not None:
        transforms.append(Orientation(axcodes=orientation, labels=(("L", "R"), ("P", "A"), ("I", "S"))))
    if spacing_mm is not None:
        transforms.append(Spacing(pixdim=spacing_mm, mode=mode, padding_mode="border"))
    return tuple(transforms)


def object_mask(image: Tensor) -> Tensor:
    """Where an image (C, X, Y, Z) is not zero in every channel, holes filled: (1, X, Y, Z) bool."""
    filled = binary_fill_holes((image != 0).any(0).numpy())
    return torch.from_numpy(np.asarray(filled))[None]


def scale_channel(channel: Tensor, scale: ChannelScale, inside: Tensor | None = None) -> Tensor:
    """One channel (1, ...) brought to the scale; a constant channel becomes zero under "zscore".

    Args:
        channel: intensities.
        scale: how.
        inside: `object_mask` of all channels, for "zscore_nonzero".

    Raises:
        ValueError: "zscore_nonzero" without `inside`.
    """
    if scale.kind == "none":
        return channel
    if scale.kind == "rescale":
        low, high = channel.min(), channel.max()
        return (channel - low) / (high - low) if low < high else torch.zeros_like(channel)
    if scale.kind == "zscore_nonzero":
        if inside is None:
            raise ValueError("zscore_nonzero needs the mask of the object")
        voxels = channel[inside]
        mean, std = (voxels.mean(), voxels.std(correction=0).clamp(min=1e-8)) if len(voxels) else (0.0, 1.0)
        return torch.where(inside, (channel - mean) / std, torch.zeros_like(channel))
    if scale.kind == "zscore":
        return (channel - channel.mean()) / (channel.std(correction=0).item() or 1.0)
    return (channel.clamp(scale.low, scale.high) - scale.mean) / scale.std


def fit_preprocessing(
    config: DataConfig, dataset: Dataset, spatial_dims: int
) -> tuple[Preprocessing, tuple[float, ...]]:
    """Decides grid and scales from the settings and, where they ask for it, from the training cases.

    Args:
        config: the data settings.
        dataset: all training and validation cases are opened, so that a bad file is found before training.
        spatial_dims: 2 keeps the third axis' spacing.

    Returns:
        The preprocessing, and the voxel size in mm per axis that the network will typically see.

    Raises:
        UserError: a case is unusable, or a setting does not fit the data.
    """
    kinds = tuple(_kind(config.normalization, name) for name in dataset.channels)
    spacings: list[tuple[float, ...]] = []
    flat = True
    foreground: list[NDArray[np.float32]] = []
    rng = np.random.default_rng(1234)
    for case in (*dataset.training, *dataset.validation):
        volume = read_image(case.images, dataset.channels)
        labels, _ = read_label_map(cast(Any, case.label), list(dataset.labels.values()), volume.grid)
        if case not in dataset.training:
            continue
        flat = flat and volume.grid.shape[2] == 1
        turned = Preprocessing(config.orientation, None, ())._regrid(volume.data[:1], volume.grid.affine, "nearest")
        spacings.append(tuple(float(edge) for edge in turned.pixdim))
        if "ct" in kinds and (labels > 0).any():
            voxels = volume.data[:, labels > 0]
            foreground.append(voxels[:, rng.integers(0, voxels.shape[1], min(SAMPLES_PER_CASE, voxels.shape[1]))])
    # Turning files of one slice could make the slice axis an in-plane one.
    orientation = None if spatial_dims == 2 and flat else config.orientation
    scales = tuple(_fit_scale(dataset, kind, i, foreground) for i, kind in enumerate(kinds))
    median = tuple(float(edge) for edge in np.median(np.array(spacings), axis=0))
    target = _target_spacing(config, median, spatial_dims)
    return Preprocessing(orientation, target, scales), (target or median)[:spatial_dims]


def _kind(setting: str, channel: str) -> Literal["zscore", "ct", "none"]:
    if setting != "auto":
        return cast(Literal["zscore", "ct", "none"], setting)
    return "ct" if channel.casefold() == "ct" else "zscore"


def _fit_scale(
    dataset: Dataset, kind: Literal["zscore", "ct", "none"], channel: int, foreground: Sequence[NDArray[np.float32]]
) -> ChannelScale:
    if kind != "ct":
        return ChannelScale(kind)
    if not foreground:
        raise UserError(
            f"{dataset.path}: 0 labelled voxels in the training cases, which CT normalisation needs; "
            "label a case or set data.normalization to zscore"
        )
    values = np.concatenate([f[channel] for f in foreground]).astype(np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    if low == high:
        raise UserError(
            f"{dataset.path}: channel {dataset.channels[channel]!r} is constant ({low}) in the labelled voxels; "
            "check the images or set data.normalization to zscore"
        )
    return ChannelScale("ct", float(low), float(high), float(values.mean()), max(float(values.std()), 1e-8))


def _target_spacing(config: DataConfig, median: tuple[float, ...], spatial_dims: int) -> tuple[float, ...] | None:
    if config.spacing_mm is None:
        return None
    target = median[:spatial_dims] if config.spacing_mm == "median" else config.spacing_mm
    if len(target) != spatial_dims or not all(edge > 0 and np.isfinite(edge) for edge in target):
        raise UserError(
            f"data.spacing_mm: {target} does not fit; give {spatial_dims} sizes above 0 in mm, 'median' or null"
        )
    return (*target, *([-1.0] * (3 - spatial_dims)))
