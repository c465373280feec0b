"""What a file, or a folder with a DICOM series, holds: a picture or a volume that can be fused."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.fusion.windows import Window
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["Source", "check_finite"]


@dataclass(frozen=True)
class Source:
    """One of the two images, as stored.

    Attributes:
        path: file, or folder of a DICOM series.
        values: (H, W) of a picture or (X, Y, Z) of a volume, and a last axis of 3 where it has colour.
        window: stored values of black and white.
        dtype: of the stored numbers; differs from that of `values` where a header scales them.
        grid: where the voxels lie; None for a picture.
        alpha: (H, W) opacity of a picture, in its dtype.
        scale: slope and intercept that make values of the stored numbers.
    """

    path: Path
    values: NDArray[Any]
    window: Window
    dtype: np.dtype[Any]
    grid: Grid | None = None
    alpha: NDArray[Any] | None = None
    scale: tuple[float, float] = field(default=(1.0, 0.0))

    @property
    def is_volume(self) -> bool:
        """Whether it lies in space, as NIfTI and DICOM files do."""
        return self.grid is not None

    @property
    def is_coloured(self) -> bool:
        """Whether `values` has colours."""
        return self.values.ndim == (4 if self.is_volume else 3)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels or voxels along each axis."""
        return self.values.shape[:-1] if self.is_coloured else self.values.shape


def check_finite(path: Path, values: NDArray[Any]) -> None:
    """Refuses NaN and infinity, which have no gray value.

    Raises:
        UserError: with their number, and where the first is.
    """
    bad = ~np.isfinite(values)
    if bad.any():
        first = [int(i) for i in np.argwhere(bad)[0]]
        raise UserError(
            f"{path}: {int(bad.sum())} value(s) are not finite, the first is {values[tuple(first)]} at {first}; "
            "replace them, for example by the background's value"
        )
