"""The light augmentation of slices: changed in space by albumentations and in intensity by MONAI."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.transforms import Compose

from ssmvision.recipes.data.albumentations import Pipeline, flip_rotate
from ssmvision.recipes.segmentation.config import AugmentConfig
from ssmvision.recipes.segmentation.patches import Patch, Triple
from ssmvision.recipes.segmentation.transforms import intensity_transforms

__all__ = ["SliceAugment"]


class SliceAugment:
    """Random changes of patches of one slice along the last axis.

    Args:
        config: the augmentation; `flip_axes` may name axes 0 and 1.
        patch_size: two sizes in voxels.
    """

    def __init__(self, config: AugmentConfig, patch_size: Sequence[int]) -> None:
        rows, columns = patch_size
        self.read_size: Triple = (rows, columns, 1)
        axes = (0, 1) if config.flip_axes is None else config.flip_axes
        self.spatial = Pipeline(flip_rotate(axes, config.rotate_degrees, config.probability))
        self.intensity = Compose(intensity_transforms(config))

    def __call__(self, read: Callable[[Triple], Patch], generator: np.random.Generator) -> Patch:
        """The augmented patch; see `patches.Augment`."""
        patch = read(self.read_size)
        image = np.ascontiguousarray(np.moveaxis(patch.image[..., 0].numpy(), 0, -1))
        seed = int(generator.integers(2**31))
        # albumentations takes no negative masks; what is outside the case is background by now.
        result = self.spatial(image, [patch.label[..., 0].clamp(min=0).long().numpy()], seed=seed)
        self.intensity.set_random_state(seed=seed)
        changed = self.intensity({"image": result["image"]})["image"]
        values = getattr(changed, "as_tensor", lambda: changed)().float()
        return Patch(values[..., None], torch.as_tensor(result["masks"][0]).short()[..., None])
