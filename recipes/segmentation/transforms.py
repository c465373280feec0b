"""The light augmentation: mirroring, small turns, noise, contrast and gamma, through MONAI's random transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandFlipd,
    RandGaussianNoised,
    RandRotated,
    RandScaleIntensityFixedMeand,
    Transform,
)

from ssmvision.recipes.segmentation.config import AugmentConfig
from ssmvision.recipes.segmentation.patches import Patch, Triple

__all__ = ["LightAugment", "intensity_transforms"]

KEYS = ("image", "label")


def intensity_transforms(config: AugmentConfig) -> list[Transform]:
    """Noise, contrast and gamma changes of the normalised image."""
    p = config.probability
    return [
        RandGaussianNoised("image", prob=p, std=config.noise_std, sample_std=True),
        RandScaleIntensityFixedMeand("image", factors=config.scale, prob=p),
        RandAdjustContrastd("image", prob=p, gamma=config.gamma, retain_stats=True),
    ]


class LightAugment:
    """Random changes of 3D patches.

    Args:
        config: the augmentation.
        patch_size: three sizes in voxels.
        spacing_mm: voxel size; rotation is about the axis with the largest one.
    """

    def __init__(self, config: AugmentConfig, patch_size: Sequence[int], spacing_mm: Sequence[float]) -> None:
        self.read_size = cast(Triple, tuple(patch_size))
        spatial: list[Transform] = []
        if config.rotate_degrees > 0:
            angle: Any = {f"range_{'xyz'[int(np.argmax(spacing_mm))]}": math.radians(config.rotate_degrees)}
            spatial.append(RandRotated(KEYS, prob=config.probability, mode=("bilinear", "nearest"), **angle))
        axes = range(len(patch_size)) if config.flip_axes is None else config.flip_axes
        spatial += [RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in axes]
        self.transforms = Compose([*spatial, *intensity_transforms(config)])

    def __call__(self, read: Callable[[Triple], Patch], generator: np.random.Generator) -> Patch:
        """The augmented patch; see `patches.Augment`."""
        patch = read(self.read_size)
        self.transforms.set_random_state(seed=int(generator.integers(2**31)))
        found = self.transforms({"image": patch.image, "label": patch.label.float()[None]})
        image, label = (getattr(found[key], "as_tensor", lambda key=key: found[key])() for key in KEYS)
        return Patch(image.float(), label[0].round().short())
