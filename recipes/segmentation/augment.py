"""nnU-Net v2's augmentation, in its order and with its probabilities (Isensee et al., Nature Methods 2021).

What is random is drawn first and apart from what is done, each from the generator of the patch alone. MONAI's
transforms are used where they do the same; its Gaussian filter is not, as it darkens the borders of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from monai.transforms import AdjustContrast, ScaleIntensityFixedMean
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional

from ssmvision.recipes.preprocessing.case import OUTSIDE
from ssmvision.recipes.preprocessing.resize import ANISOTROPY
from ssmvision.recipes.segmentation.patches import Patch, Triple

__all__ = ["NnunetAugment", "Spatial", "transform_patch"]

DEGREES_3D, DEGREES_PLANE, DEGREES_OBLONG = 30.0, 180.0, 15.0
# Planes whose sides differ by more than this would lose too much of the patch by larger turns.
OBLONG = 1.5
SCALES = (0.7, 1.4)
# nnU-Net reads what a patch needs down to this scale; beyond it, zeros come in.
READ_SCALE = 0.85
Generator = np.random.Generator


@dataclass(frozen=True)
class Spatial:
    """A turn and a zoom of a patch about its centre.

    Args:
        angles: in radians about each axis.
        scales: per axis; above 1 the patch shows more of the case.
    """

    angles: tuple[float, float, float]
    scales: tuple[float, float, float]

    @property
    def matrix(self) -> Tensor:
        """(3, 3), offset from the centre of the patch to offset from its centre in what is read; both in voxels."""
        matrix = torch.eye(3, dtype=torch.float64)
        for axis, angle in enumerate(self.angles):
            a, b = (other for other in range(3) if other != axis)
            turn = torch.eye(3, dtype=torch.float64)
            turn[a, a] = turn[b, b] = math.cos(angle)
            turn[a, b], turn[b, a] = -math.sin(angle), math.sin(angle)
            matrix = turn @ matrix
        return matrix * torch.tensor(self.scales, dtype=torch.float64)


def transform_patch(patch: Patch, how: Spatial, size: Triple) -> Patch:
    """The middle of a patch turned and zoomed: the image linearly, a label where half of a voxel or more has it.

    Args:
        patch: larger than the result.
        how: see `Spatial`.
        size: of the result.
    """
    offsets = torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in size), indexing="ij")
    matrix, shape = how.matrix.float(), patch.label.shape
    places: list[Tensor] = []
    for row, n, m in zip(matrix, shape, size, strict=True):
        centre = (n - m) // 2 + (m - 1) / 2
        place = (row[:, None, None, None] * torch.stack(offsets)).sum(0) + centre
        places.append((2 * place + 1) / n - 1)
    grid = torch.stack(places[::-1], -1)[None]

    def sampled(values: Tensor) -> Tensor:
        return functional.grid_sample(values[None], grid, "bilinear", "zeros", align_corners=False)[0]

    label = torch.zeros(size, dtype=torch.int16)
    for value in patch.label.unique().tolist():
        if value != 0:
            label[sampled((patch.label == value).float()[None])[0] >= 0.5] = value
    return Patch(sampled(patch.image), label)


class NnunetAugment:
    """Turns a place in a case into an augmented patch.

    Args:
        patch_size: three sizes, or two for slices along the last axis.
        spacing_mm: voxel edges; where the patch is flat along the longest, turns and zooms stay in the plane across.
        flip_axes: mirrored with probability one half each.
        masked: channels that are set to zero outside the object, as their scale looked inside alone.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        spacing_mm: Sequence[float],
        flip_axes: Sequence[int] | None = None,
        masked: Sequence[int] = (),
    ) -> None:
        self.patch = cast(Triple, (*patch_size, *[1] * (3 - len(patch_size))))
        self.flip_axes = tuple(range(len(patch_size)) if flip_axes is None else flip_axes)
        self.masked = list(masked)
        self.flat = 2 if len(patch_size) == 2 else _flat_axis(self.patch, spacing_mm)
        self.degrees = DEGREES_3D
        if self.flat is not None:
            self.degrees = DEGREES_PLANE
            sides = [n for axis, n in enumerate(self.patch) if axis != self.flat]
            if len(patch_size) == 2 and max(sides) / min(sides) > OBLONG:
                self.degrees = DEGREES_OBLONG
        self.read_size = self._read_size()

    def _read_size(self) -> Triple:
        """What the corners of a patch reach when it is turned about one axis and zoomed."""
        angle = math.radians(min(self.degrees, 90.0))
        size = []
        for axis, n in enumerate(self.patch):
            others = [m for other, m in enumerate(self.patch) if other != axis and other != self.flat]
            reach = [n * math.cos(angle) + m * math.sin(angle) for m in others]
            size.append(n if axis == self.flat else int(max(n, *reach) / READ_SCALE))
        return cast(Triple, tuple(size))

    def __call__(self, read: Callable[[Triple], Patch], generator: Generator) -> Patch:
        """The augmented patch; see `patches.Augment`."""
        spatial = self.draw_spatial(generator)
        # Reading the larger part is what costs; two patches of three need none of it.
        patch = read(self.patch) if spatial is None else transform_patch(read(self.read_size), spatial, self.patch)
        image, label = self.intensities(patch.image, generator), patch.label
        flips = [axis for axis in self.flip_axes if generator.random() < 0.5]
        image, label = image.flip([1 + axis for axis in flips]), label.flip(flips)
        if self.masked:
            image[self.masked] = torch.where(label == OUTSIDE, 0.0, image[self.masked])
        return Patch(image, label)

    def draw_spatial(self, generator: Generator) -> Spatial | None:
        """A turn with probability 0.2 and a zoom with probability 0.2; None: neither."""
        turned, zoomed = generator.random() < 0.2, generator.random() < 0.2
        if not turned and not zoomed:
            return None
        limit, about = math.radians(self.degrees), range(3) if self.flat is None else (self.flat,)
        angles, scale = [0.0] * 3, float(generator.uniform(*SCALES)) if zoomed else 1.0
        for axis in about if turned else ():
            angles[axis] = float(generator.uniform(-limit, limit))
        x, y, z = (1.0 if axis == self.flat else scale for axis in range(3))
        return Spatial((angles[0], angles[1], angles[2]), (x, y, z))

    def intensities(self, image: Tensor, generator: Generator) -> Tensor:
        """Noise, blur, brightness, contrast, low resolution and gamma, each with its own probability."""
        if generator.random() < 0.1:
            noise = generator.standard_normal(tuple(image.shape), dtype=np.float32)
            image = image + torch.from_numpy(noise) * float(generator.uniform(0, 0.1))
        image = _per_channel(image, generator, 0.2, 0.5, self._blurred)
        image = _per_channel(image, generator, 0.15, 1.0, lambda c, g: c * _around_one(g, 0.75, 1.25))
        image = _per_channel(image, generator, 0.15, 1.0, _contrasted)
        image = _per_channel(image, generator, 0.25, 0.5, self._coarsened)
        image = _per_channel(image, generator, 0.1, 1.0, lambda c, g: _gamma(c, g, invert=True))
        return _per_channel(image, generator, 0.3, 1.0, lambda c, g: _gamma(c, g, invert=False))

    def _blurred(self, channel: Tensor, generator: Generator) -> Tensor:
        sigma = [0.0 if n == 1 else float(generator.uniform(0.5, 1)) for n in self.patch]
        return torch.from_numpy(gaussian_filter(channel.numpy(), (0, *sigma)))

    def _coarsened(self, channel: Tensor, generator: Generator) -> Tensor:
        """Down by nearest neighbour and up again linearly, as if it had been scanned at a lower resolution."""
        zoom = float(generator.uniform(0.5, 1))
        size = [n if axis == self.flat else max(round(n * zoom), 1) for axis, n in enumerate(self.patch)]
        small = functional.interpolate(channel[None], size=size, mode="nearest-exact")
        return functional.interpolate(small, size=list(self.patch), mode="trilinear", align_corners=False)[0]


def _flat_axis(patch: Triple, spacing_mm: Sequence[float]) -> int | None:
    """The axis of the longest voxel edge, if the patch is more than three times as large across it as along it."""
    axis = max(range(3), key=lambda i: (spacing_mm[i], i))
    return axis if max(patch) / patch[axis] > ANISOTROPY else None


def _per_channel(
    image: Tensor,
    generator: Generator,
    probability: float,
    per_channel: float,
    change: Callable[[Tensor, Generator], Tensor],
) -> Tensor:
    """Changes a patch with a probability, and then each of its channels with another."""
    if generator.random() >= probability:
        return image
    channels = image.split(1)
    return torch.cat([change(c, generator) if generator.random() < per_channel else c for c in channels])


def _around_one(generator: Generator, low: float, high: float) -> float:
    """A factor that is below 1 as often as above."""
    return float(generator.uniform(low, 1) if generator.random() < 0.5 else generator.uniform(1, high))


def _contrasted(channel: Tensor, generator: Generator) -> Tensor:
    factor = _around_one(generator, 0.75, 1.25)
    return _plain(ScaleIntensityFixedMean(factor=factor - 1, preserve_range=True, fixed_mean=True)(channel))


def _gamma(channel: Tensor, generator: Generator, invert: bool) -> Tensor:
    gamma = _around_one(generator, 0.7, 1.5)
    return _plain(AdjustContrast(gamma, invert_image=invert, retain_stats=True)(channel))


def _plain(values: Any) -> Tensor:
    return cast(Tensor, getattr(values, "as_tensor", lambda: values)())
