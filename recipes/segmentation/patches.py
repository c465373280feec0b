"""Training patches: which case, which place, and what is read of it.

Every patch is a function of (seed, index) alone. Resuming, or loading in several workers, therefore sees the very
patches that an uninterrupted run sees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ssmvision.recipes.preprocessing.case import OUTSIDE, Prepared
from ssmvision.recipes.preprocessing.locations import Locations

__all__ = [
    "Augment",
    "MemoryCase",
    "MemoryCases",
    "Patch",
    "PatchDataset",
    "Reader",
    "Sampling",
    "WholeCases",
    "read_patch",
]

Triple = tuple[int, int, int]


class Reader(Protocol):
    """A prepared case that is read in parts: `MemoryCase`, or `ssmvision.recipes.preprocessing.store.CaseStore`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, X, Y, Z)."""

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel edges."""

    @property
    def locations(self) -> Locations:
        """Where the classes are."""

    def image(self, box: tuple[slice, ...]) -> NDArray[np.float32]:
        """Part (C, x, y, z)."""

    def label(self, box: tuple[slice, ...]) -> NDArray[np.int16]:
        """Part (x, y, z)."""


@dataclass(frozen=True)
class MemoryCase:
    """A prepared case that is held in memory."""

    held: Prepared

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, X, Y, Z)."""
        return self.held.image.shape

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel edges."""
        return self.held.spacing_mm

    @property
    def locations(self) -> Locations:
        """Where the classes are."""
        return self.held.locations

    def image(self, box: tuple[slice, ...]) -> NDArray[np.float32]:
        """Part (C, x, y, z)."""
        return self.held.image[(slice(None), *box)]

    def label(self, box: tuple[slice, ...]) -> NDArray[np.int16]:
        """Part (x, y, z)."""
        return self.held.label[box]


class MemoryCases(Sequence[Reader]):
    """Cases that are prepared when they are first asked for.

    Args:
        cases: what `prepare` takes.
        prepare: reads and prepares one case.
        keep: hold on to it; otherwise it is read again every time.
    """

    def __init__(self, cases: Sequence[Any], prepare: Callable[[Any], Prepared], keep: bool) -> None:
        self.cases, self.prepare, self.keep = tuple(cases), prepare, keep
        self.kept: dict[int, Reader] = {}

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: Any) -> Any:
        if index in self.kept:
            return self.kept[index]
        case = MemoryCase(self.prepare(self.cases[index]))
        if self.keep:
            self.kept[index] = case
        return case


@dataclass(frozen=True)
class Patch:
    """What was read of a case, before augmentation.

    Args:
        image: (C, x, y, z) float32, zero outside the case.
        label: (x, y, z) int16, `OUTSIDE` outside the case.
    """

    image: Tensor
    label: Tensor


class Augment(Protocol):
    """Random changes of a patch."""

    @property
    def read_size(self) -> Triple:
        """Voxels around the patch's centre that a change may need, three sizes."""

    def __call__(self, read: Callable[[Triple], Patch], generator: np.random.Generator) -> Patch:
        """The patch; `read` gives so many voxels around its centre, at most `read_size`."""


@dataclass(frozen=True)
class Sampling:
    """How cases and places are drawn.

    Args:
        batch_size: of all processes together.
        foreground: share of the patches that are centred on a voxel of a class drawn uniformly among those present.
        by_place: these are the last ones of every batch, as in nnU-Net v2; otherwise each is one by chance.
        by_chance: every patch draws its case among all; otherwise cases come in shuffled rounds.
    """

    batch_size: int
    foreground: float
    by_place: bool
    by_chance: bool

    def case(self, seed: int, index: int, cases: int, generator: np.random.Generator) -> int:
        """Number of the case of a patch."""
        if self.by_chance:
            return int(generator.integers(cases))
        order = np.random.default_rng([seed, index // cases]).permutation(cases)
        return int(order[index % cases])

    def forced(self, index: int, generator: np.random.Generator) -> bool:
        """Whether a patch is centred on foreground."""
        if self.by_place:
            return index % self.batch_size >= round(self.batch_size * (1 - self.foreground))
        return bool(generator.random() < self.foreground)


def place(
    locations: Locations,
    shape: Sequence[int],
    read_size: Triple,
    patch: Triple,
    forced: bool,
    generator: np.random.Generator,
) -> Triple:
    """First voxel of the box of `read_size` voxels to read; may be negative.

    The box may reach out of the case as far as what it is larger than the patch, so that a patch reaches every voxel
    but is itself inside; a case that is smaller lies in the middle.
    """
    lowest, highest = [], []
    for n, size, inner in zip(shape, read_size, patch, strict=True):
        beyond = max(size - inner, size - n)
        lowest.append(-(beyond // 2))
        highest.append(n + beyond - beyond // 2 - size)
    start = [int(generator.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    present = locations.present if forced else []
    if present:
        chosen = present[int(generator.integers(len(present)))]
        flat = locations.voxel(chosen, int(generator.integers(locations.count(chosen))))
        centre = np.unravel_index(flat, tuple(shape))
        start = [int(at) - size // 2 for at, size in zip(centre, read_size, strict=True)]
        start = [min(max(s, low), high) for s, low, high in zip(start, lowest, highest, strict=True)]
    x, y, z = start
    return x, y, z


def read_patch(case: Reader, start: Sequence[int], size: Sequence[int]) -> Patch:
    """A box of a case, which may reach out of it."""
    lows = [max(first, 0) for first in start]
    highs = [min(first + n, m) for first, n, m in zip(start, size, case.shape[1:], strict=True)]
    box = tuple(slice(low, max(high, low)) for low, high in zip(lows, highs, strict=True))
    inside = tuple(slice(part.start - first, part.stop - first) for part, first in zip(box, start, strict=True))
    image, label = np.zeros((case.shape[0], *size), np.float32), np.full(tuple(size), OUTSIDE, np.int16)
    image[(slice(None), *inside)], label[inside] = case.image(box), case.label(box)
    return Patch(torch.from_numpy(image), torch.from_numpy(label))


class PatchDataset(Dataset[dict[str, Tensor]]):
    """Endless training patches: item i is drawn with a generator seeded by (seed, i).

    Args:
        cases: to draw from.
        sampling: how to draw.
        augment: random changes.
        patch_size: three sizes, or two for slices along the last axis.
        seed: of the run.

    Shape:
        {"image": (C, *patch) float32, "label": (1, *patch) int64, "spacing_mm": (axes,) float32}.
    """

    def __init__(
        self, cases: Sequence[Reader], sampling: Sampling, augment: Augment, patch_size: Sequence[int], seed: int
    ) -> None:
        self.cases, self.sampling, self.augment, self.seed = cases, sampling, augment, seed
        self.axes = len(patch_size)
        self.patch = cast(Triple, (*patch_size, *[1] * (3 - self.axes)))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        generator = np.random.default_rng([self.seed, 1, index])
        case = self.cases[self.sampling.case(self.seed, index, len(self.cases), generator)]
        forced = self.sampling.forced(index, generator)
        largest = self.augment.read_size
        start = place(case.locations, case.shape[1:], largest, self.patch, forced, generator)

        def read(size: Triple) -> Patch:
            return read_patch(case, [s + (m - n) // 2 for s, m, n in zip(start, largest, size, strict=True)], size)

        patch = self.augment(read, generator)
        image, label = patch.image, patch.label.clamp(min=0).long()[None]
        if self.axes == 2:
            image, label = image[..., 0], label[..., 0]
        spacing = torch.tensor(case.spacing_mm[: self.axes], dtype=torch.float32)
        return {"image": image.contiguous(), "label": label.contiguous(), "spacing_mm": spacing}


class WholeCases(Dataset[dict[str, Any]]):
    """Whole volumes, for validation.

    Shape:
        {"image": (C, X, Y, Z) float32, "label": (1, X, Y, Z) int64, "spacing_mm": (3,) float32, "case": id}.
    """

    def __init__(self, cases: Sequence[Reader], ids: Sequence[str]) -> None:
        self.cases, self.ids = cases, tuple(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case = self.cases[index]
        patch = read_patch(case, (0, 0, 0), case.shape[1:])
        spacing = torch.tensor(case.spacing_mm, dtype=torch.float32)
        label = patch.label.clamp(min=0).long()[None]
        return {"image": patch.image, "label": label, "spacing_mm": spacing, "case": self.ids[index]}
