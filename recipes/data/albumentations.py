"""The one place that imports albumentations (2D spatial augmentation); 3D recipes use MONAI.

albumentations 2.0.8 is the last release under the MIT licence. Its successor, albumentationsx, is AGPL-3.0 and installs
under the same import name, so it is told apart by its distribution and refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pipeline", "classification", "crop_flip_rotate90", "flip_rotate", "refuse_successor"]


def refuse_successor() -> None:
    """Raises ImportError if albumentationsx is what `import albumentations` would give."""
    try:
        found = metadata.version("albumentationsx")
    except metadata.PackageNotFoundError:
        return
    raise ImportError(
        f"albumentationsx {found} (AGPL-3.0) is installed under the name albumentations; "
        "run: pip uninstall albumentationsx && pip install --force-reinstall 'albumentations>=2.0.8,<2.1'"
    )


refuse_successor()
# Must be set before the import, which otherwise asks the network for a newer version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A  # noqa: E402  (only after the checks above)


class Pipeline:
    """Applies one draw of an albumentations pipeline to an image, its masks and paired images.

    Args:
        transforms: albumentations transforms in order.
        pairs: names of further images that get the same spatial change as the first, such as the second modality in
            fusion.

    Example:
        >>> Pipeline([A.HorizontalFlip(p=1.0)])(np.eye(2, dtype=np.float32)[..., None], seed=0)["image"]
        tensor([[[0., 1.],
                 [1., 0.]]])
    """

    def __init__(self, transforms: Sequence[A.BasicTransform], pairs: Sequence[str] = ()) -> None:
        self.pairs = tuple(pairs)
        self.compose = A.Compose(list(transforms), additional_targets=dict.fromkeys(self.pairs, "image"))

    def __call__(
        self,
        image: NDArray[Any],
        masks: Sequence[NDArray[np.integer]] = (),
        pairs: Mapping[str, NDArray[Any]] | None = None,
        seed: int | None = None,
    ) -> dict[str, Any]:
        """One random change.

        Args:
            image: (H, W, C), float32 or uint8.
            masks: (H, W) integer maps, changed by nearest neighbour.
            pairs: images (H, W, C') by the names given at construction.
            seed: makes the draw repeatable; None draws on.

        Returns:
            "image" and every pair as tensors (C, H', W'), "masks" as a list of int64 tensors (H', W').

        Raises:
            ValueError: a shape does not fit, or the pairs are not those named at construction.
        """
        pairs = dict(pairs or {})
        if set(pairs) != set(self.pairs):
            raise ValueError(f"pairs are {sorted(pairs)}, the pipeline was built for {sorted(self.pairs)}")
        for name, array in {"image": image, **pairs}.items():
            if array.ndim != 3 or array.shape[:2] != image.shape[:2]:
                raise ValueError(f"{name} has shape {array.shape}, expected (H, W, C) with {image.shape[:2]}")
        if any(mask.shape != image.shape[:2] for mask in masks):
            raise ValueError(f"masks have shapes {[m.shape for m in masks]}, expected {image.shape[:2]}")
        if seed is not None:
            self.compose.set_random_seed(seed)
        given: dict[str, Any] = {"image": image, **pairs}
        if masks:
            given["masks"] = [np.ascontiguousarray(mask, dtype=np.int32) for mask in masks]
        result = self.compose(**given)
        tensors: dict[str, Any] = {name: _channel_first(result[name]) for name in ("image", *self.pairs)}
        tensors["masks"] = [torch.from_numpy(np.ascontiguousarray(m)).long() for m in result.get("masks", ())]
        return tensors


def _channel_first(image: NDArray[Any]) -> Tensor:
    image = image if image.ndim == 3 else image[..., None]
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))


def flip_rotate(flip_axes: Sequence[int], rotate_degrees: float, probability: float) -> list[A.BasicTransform]:
    """Mirroring of axis 0 (rows) and 1 (columns) with probability one half each, and a turn with zeros outside."""
    flips = {0: A.VerticalFlip(p=0.5), 1: A.HorizontalFlip(p=0.5)}
    turn = [A.Rotate(limit=(-rotate_degrees, rotate_degrees), p=probability)] if rotate_degrees > 0 else []
    return [*(flips[axis] for axis in flip_axes), *turn]


def crop_flip_rotate90(size: Sequence[int], flip_axes: Sequence[int], rotate90: bool) -> list[A.BasicTransform]:
    """A crop of `size` (rows, columns) anywhere, mirrored and turned without interpolation.

    Smaller images are first continued by reflection.
    """
    height, width = size
    pad = A.PadIfNeeded(height, width, position="top_left", border_mode=cv2.BORDER_REFLECT_101, p=1.0)
    turn = [A.RandomRotate90(p=1.0)] if rotate90 else []
    return [pad, A.RandomCrop(height, width, p=1.0), *flip_rotate(flip_axes, 0.0, 0.0), *turn]


def classification(
    size: Sequence[int],
    crop_scale: float = 1.0,
    shift: int = 0,
    flip_axes: Sequence[int] = (),
    rotate_degrees: float = 0.0,
    brightness: float = 0.0,
    erase: float = 0.0,
) -> list[A.BasicTransform]:
    """Changes of pictures for a classifier; all arguments as in `recipes.classification.config.AugmentConfig`.

    Args:
        size: (rows, columns) of the result. Pictures already have it where `crop_scale` is 1.
    """
    height, width = size
    crop: list[A.BasicTransform] = []
    if crop_scale < 1:
        crop = [A.RandomResizedCrop(size=(height, width), scale=(crop_scale, 1.0), p=1.0)]
    if shift > 0:
        border = {"border_mode": cv2.BORDER_REFLECT_101, "p": 1.0}
        crop += [A.PadIfNeeded(height + 2 * shift, width + 2 * shift, **border), A.RandomCrop(height, width, p=1.0)]
    turned = flip_rotate(flip_axes, rotate_degrees, 0.5)
    light = [A.RandomBrightnessContrast(brightness, brightness, p=1.0)] if brightness > 0 else []
    hole = [A.CoarseDropout(num_holes_range=(1, 1), p=erase)] if erase > 0 else []
    return [*crop, *turned, *light, *hole]
