"""2D training patches: slices of prepared volumes, changed in space by albumentations and in intensity by MONAI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monai.transforms import Compose, Randomizable
from torch import Tensor

from ssmvision.recipes.data.albumentations import Pipeline, flip_rotate
from ssmvision.recipes.segmentation.config import AugmentConfig
from ssmvision.recipes.segmentation.transforms import INDICES, intensity_transforms

__all__ = ["SlicePatch"]


class SlicePatch(Randomizable):
    """Draws one augmented patch from a slice along the last axis.

    With probability `config.foreground_fraction` the patch holds a voxel of a class drawn uniformly among those
    present; else slice and place are uniform.

    Args:
        config: the augmentation; `flip_axes` may name axes 0 and 1.
        patch_size: two sizes in voxels.

    Shape:
        {"image": (C, X, Y, Z), "label": (1, X, Y, Z), "spacing_mm": (3,)} ->
        {"image": (C, *patch), "label": (1, *patch), "spacing_mm": (2,)}.
    """

    def __init__(self, config: AugmentConfig, patch_size: Sequence[int]) -> None:
        self.config, self.patch_size = config, tuple(patch_size)
        axes = (0, 1) if config.flip_axes is None else config.flip_axes
        self.spatial = Pipeline(flip_rotate(axes, config.rotate_degrees, config.probability))
        self.intensity = Compose(intensity_transforms(config))

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Tensor]:
        """One patch; see the class for shapes."""
        shape = data["image"].shape[1:]
        row, column, z = self._inside(data[INDICES], shape)
        corner = [
            self._corner(at, size, patch)
            for at, size, patch in zip((row, column), shape, self.patch_size, strict=False)
        ]
        window = tuple(slice(a, a + n) for a, n in zip(corner, self.patch_size, strict=True))
        image, label = (np.asarray(data[key][(slice(None), *window, z)]) for key in ("image", "label"))
        seed = int(self.R.randint(2**31))
        result = self.spatial(np.ascontiguousarray(np.moveaxis(image, 0, -1)), [label[0]], seed=seed)
        self.intensity.set_random_state(seed=seed)
        changed = self.intensity({"image": result["image"]})["image"]
        return {
            "image": getattr(changed, "as_tensor", lambda: changed)().float(),
            "label": result["masks"][0][None],
            "spacing_mm": data["spacing_mm"][:2],
        }

    def _inside(self, indices: Sequence[Any], shape: Sequence[int]) -> tuple[int, int, int]:
        """A voxel that the patch must hold."""
        present = [i for i in indices[1:] if len(i)]
        if present and self.R.random_sample() < self.config.foreground_fraction:
            chosen = present[self.R.randint(len(present))]
            flat = int(chosen[self.R.randint(len(chosen))])
        else:
            flat = int(self.R.randint(int(np.prod(shape))))
        x, y, z = np.unravel_index(flat, tuple(shape))
        return int(x), int(y), int(z)

    def _corner(self, inside: int, size: int, patch: int) -> int:
        """Start of a window of `patch` voxels within [0, size) that holds `inside`, uniform among the possible ones."""
        return int(self.R.randint(max(0, inside - patch + 1), min(inside, size - patch) + 1))
