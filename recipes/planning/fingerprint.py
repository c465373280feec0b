"""What the planner has to know of a dataset: sizes, spacings and intensities of its training cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Fingerprint", "Intensities"]


@dataclass(frozen=True)
class Intensities:
    """Statistics of one channel over the labelled voxels of all training cases, in the image's own unit."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True)
class Fingerprint:
    """Sizes, spacings and intensities of the training cases, axes in nnU-Net's order (z, y, x).

    Args:
        spacings: voxel edges in mm per case.
        shapes_after_crop: voxels per case, of the box around everything that is not zero.
        foreground_intensity_properties_per_channel: statistics of the labelled voxels; empty without any.
        median_relative_size_after_cropping: voxels in that box as a share of all, median over the cases.
    """

    spacings: tuple[tuple[float, ...], ...]
    shapes_after_crop: tuple[tuple[int, ...], ...]
    foreground_intensity_properties_per_channel: tuple[Intensities, ...]
    median_relative_size_after_cropping: float

    def to_json(self) -> dict[str, Any]:
        """Plain values under nnU-Net's names (its dataset_fingerprint.json)."""
        values = asdict(self)
        channels = values["foreground_intensity_properties_per_channel"]
        values["foreground_intensity_properties_per_channel"] = {str(i): c for i, c in enumerate(channels)}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fingerprint:
        """The inverse of `to_json`; also reads nnU-Net's own file."""
        channels = values["foreground_intensity_properties_per_channel"]
        return cls(
            tuple(tuple(map(float, row)) for row in values["spacings"]),
            tuple(tuple(map(int, row)) for row in values["shapes_after_crop"]),
            tuple(Intensities(**{k: float(v) for k, v in channels[key].items()}) for key in sorted(channels, key=int)),
            float(values["median_relative_size_after_cropping"]),
        )
