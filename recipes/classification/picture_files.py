"""Reads single picture files: PNG, JPEG, TIFF, BMP, and NIfTI files that hold one slice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.images import ENDINGS as PICTURES
from ssmvision.recipes.fusion.images import read_picture
from ssmvision.recipes.fusion.windows import volume_window
from ssmvision.recipes.segmentation.volumes import read_image

__all__ = ["ENDINGS", "FileReader", "read_file"]

NIFTI = (".nii", ".nii.gz")
ENDINGS = (*PICTURES, *NIFTI)


def read_file(path: Path) -> NDArray[Any]:
    """(H, W) or (H, W, 3): 8-bit pictures as uint8, all others as float32 in [0, 1].

    16-bit pictures are divided by 65535; floating-point pictures and NIfTI slices go from their own smallest to their
    own largest value. The first axis of a NIfTI slice becomes the columns, the second the rows, from the top down as
    viewers show RAS+ axes.

    Raises:
        UserError: the file is damaged, or a volume of several slices.
    """
    if path.name.lower().endswith(NIFTI):
        return _slice(path)
    values = read_picture(path).values
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.uint16:
        return (values / np.float32(65535)).astype(np.float32)
    return volume_window(values).to_unit(values)


def _slice(path: Path) -> NDArray[np.float32]:
    data = read_image([path]).data
    volume = data[0]
    if data.shape[0] != 1 or volume.ndim != 3 or 1 not in volume.shape:
        raise UserError(f"{path}: has the shape {tuple(volume.shape)}; expected one slice of one channel")
    plane = volume.squeeze(axis=int(np.argmin(volume.shape)))
    return volume_window(plane).to_unit(np.flipud(plane.T))


@dataclass(frozen=True)
class FileReader:
    """Reads from files."""

    paths: tuple[Path, ...]

    def __call__(self, index: int) -> NDArray[Any]:
        """One picture."""
        return read_file(self.paths[index])
