"""One case of a prediction: which files it reads, and which it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.recipes.segmentation.config import PredictConfig
from ssmvision.recipes.segmentation.datalist import strip_ending
from ssmvision.recipes.segmentation.volumes import Grid, Volume, read_grid, read_image
from ssmvision.recipes.segmentation.writing import write_label_map

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """The image files of one case and where its label map goes."""

    images: tuple[Path, ...]
    output: Path

    @property
    def probabilities(self) -> Path:
        """Where the class probabilities go, if asked for."""
        return self.output.with_name(f"{strip_ending(self.output)}_probabilities.npz")

    @property
    def uncertainty(self) -> Path:
        """Where the entropy of the probabilities goes, if asked for."""
        return self.output.with_name(f"{strip_ending(self.output)}_uncertainty.nii.gz")

    def outputs(self, config: PredictConfig) -> list[Path]:
        """All files that the settings ask for."""
        paths = [(True, self.output), (config.probabilities, self.probabilities)]
        return [path for wanted, path in (*paths, (config.uncertainty, self.uncertainty)) if wanted]

    def grid(self) -> Grid:
        """Where the voxels lie, from headers alone.

        Raises:
            UserError: a file is unusable.
        """
        return read_grid(self.images[0])

    def volume(self, channels: Sequence[str]) -> Volume:
        """The voxels of the channels, what is unusable among them masked, see `read_image`.

        Raises:
            UserError: a file is unusable.
        """
        return read_image(self.images, channels, unusable="mask")

    def write(self, labels: NDArray[np.unsignedinteger[Any]], grid: Grid, overwrite: bool) -> None:
        """Writes the label map.

        Raises:
            UserError: it cannot be written.
        """
        write_label_map(self.output, labels, grid, overwrite)
