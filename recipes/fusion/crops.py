"""Training crops of image pairs: places are drawn by albumentations for both images at once, tones for each of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ssmvision.recipes.data.albumentations import Pipeline, crop_flip_rotate90
from ssmvision.recipes.fusion.config import AugmentConfig
from ssmvision.recipes.fusion.pairs import ImagePair

__all__ = ["CropDataset", "WholeDataset"]


class CropDataset(Dataset[dict[str, Tensor]]):
    """Endless training crops: item i is drawn with a generator seeded by (seed, i), pairs in shuffled rounds.

    Args:
        pairs: images to crop from.
        config: random changes.
        patch_size: height and width in pixels; equal where crops are turned.
        seed: of the run.

    Shape:
        {"a", "b"}: (1, *patch_size) float32 in [0, 1].
    """

    def __init__(self, pairs: Sequence[ImagePair], config: AugmentConfig, patch_size: Sequence[int], seed: int) -> None:
        self.pairs, self.config, self.seed = tuple(pairs), config, seed
        self.spatial = Pipeline(crop_flip_rotate90(patch_size, config.flip_axes, config.rotate90), pairs=("b",))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """One crop."""
        n = len(self.pairs)
        order = np.random.default_rng([self.seed, index // n]).permutation(n)
        rng = np.random.default_rng([self.seed, 1, index])
        pair = self.pairs[int(order[index % n])]
        drawn = self.spatial(pair.a[..., None], pairs={"b": pair.b[..., None]}, seed=int(rng.integers(2**31)))
        a, b = (self._toned(drawn[name], rng) for name in ("image", "b"))
        return {"a": b, "b": a} if rng.random() < self.config.swap else {"a": a, "b": b}

    def _toned(self, image: Tensor, rng: np.random.Generator) -> Tensor:
        """Gamma, and black for white; the numbers drawn do not depend on the settings."""
        gamma, invert, exponent = rng.random(3)
        low, high = self.config.gamma
        if gamma < self.config.gamma_probability:
            image = image ** (low * (high / low) ** exponent)
        return 1 - image if invert < self.config.invert else image


class WholeDataset(Dataset[dict[str, Tensor]]):
    """Whole pairs as they are."""

    def __init__(self, pairs: Sequence[ImagePair]) -> None:
        self.pairs = tuple(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """{"a", "b"}: (1, H, W) float32 in [0, 1]."""
        pair = self.pairs[index]
        return {"a": _tensor(pair.a), "b": _tensor(pair.b)}


def _tensor(image: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image))[None]
