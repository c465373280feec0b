"""Reads picture files and slices of volumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.recipes.classification.volume_files import SliceCache, VolumeFile
from ssmvision.recipes.fusion.images import ENDINGS, read_picture
from ssmvision.recipes.fusion.windows import volume_window

__all__ = ["ENDINGS", "FileReader", "read_file"]


def read_file(path: Path) -> NDArray[Any]:
    """(H, W) or (H, W, 3): 8-bit pictures as uint8, all others as float32 in [0, 1].

    16-bit pictures are divided by 65535; floating-point pictures go from their own smallest to their own largest value.

    Raises:
        UserError: the file is damaged.
    """
    values = read_picture(path).values
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values / np.float32(65535)).astype(np.float32)
    return volume_window(values).to_unit(values)


@dataclass(frozen=True)
class FileReader:
    """Reads from files.

    Args:
        places: files, or volumes with the place of a slice among those chosen.
        cache: of slices.
    """

    places: tuple[Path | tuple[VolumeFile, int], ...]
    cache: SliceCache = field(default_factory=SliceCache, compare=False)

    def __call__(self, index: int) -> NDArray[Any]:
        """One picture."""
        place = self.places[index]
        return read_file(place) if isinstance(place, Path) else self.cache.read(*place)
