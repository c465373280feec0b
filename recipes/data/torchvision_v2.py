"""torchvision's transforms (v2) behind the call of `recipes.data.albumentations.Pipeline`, for 2D pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

__all__ = ["Pipeline", "classification"]


class Pipeline:
    """Applies one draw of transforms to a picture.

    Args:
        transforms: of torchvision, from tensors (C, H, W) to the same.
    """

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.compose = v2.Compose(list(transforms)) if transforms else v2.Identity()

    def __call__(self, image: NDArray[Any], seed: int | None = None) -> dict[str, Tensor]:
        """One random change.

        Args:
            image: (H, W, C), float32 or uint8.
            seed: makes the draw repeatable and leaves torch's own generator as it was; None draws on from it.

        Returns:
            "image", (C, H', W').
        """
        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))
        if seed is None:
            return {"image": self.compose(tensor)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return {"image": self.compose(tensor)}


def classification(
    size: Sequence[int],
    crop_scale: float = 1.0,
    shift: int = 0,
    flip_axes: Sequence[int] = (),
    rotate_degrees: float = 0.0,
    brightness: float = 0.0,
    erase: float = 0.0,
    policy: Literal["none", "trivial", "rand"] = "none",
) -> list[Any]:
    """Changes of pictures for a classifier; all arguments as in `recipes.classification.config.AugmentConfig`.

    Args:
        size: (rows, columns) of the result. Pictures already have it where `crop_scale` is 1.
    """
    flips = {0: v2.RandomVerticalFlip(), 1: v2.RandomHorizontalFlip()}
    policies = {"none": [], "trivial": [v2.TrivialAugmentWide()], "rand": [v2.RandAugment()]}
    wanted: list[tuple[bool, Any]] = [
        (crop_scale < 1, v2.RandomResizedCrop(tuple(size), scale=(crop_scale, 1.0), antialias=True)),
        (shift > 0, v2.RandomCrop(tuple(size), padding=shift, padding_mode="reflect")),
        *((True, flips[axis]) for axis in flip_axes),
        (rotate_degrees > 0, v2.RandomApply([v2.RandomRotation(rotate_degrees)], p=0.5)),
        (brightness > 0, v2.ColorJitter(brightness, brightness)),
        *((True, transform) for transform in policies[policy]),
        (erase > 0, v2.RandomErasing(erase)),
    ]
    return [transform for used, transform in wanted if used]
