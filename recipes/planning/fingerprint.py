"""What the planner has to know of a dataset: sizes, spacings and intensities of its training cases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.planning.typed_json import from_json
from ssmvision.recipes.segmentation.datalist import read_json

__all__ = ["Fingerprint", "Intensities", "read_fingerprint"]


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
    def from_json(cls, values: Mapping[str, Any], where: str = "fingerprint:") -> Fingerprint:
        """The inverse of `to_json`; also reads nnU-Net's own file.

        Raises:
            UserError: a value is missing or of another type; `where` names its place.
        """
        values = dict(values)
        channels = values.get("foreground_intensity_properties_per_channel")
        if isinstance(channels, dict) and all(key.isdigit() for key in channels):
            values["foreground_intensity_properties_per_channel"] = [channels[k] for k in sorted(channels, key=int)]
        return from_json(cls, values, where)


def read_fingerprint(path: Path, cases: int, channels: int) -> Fingerprint:
    """Reads a fingerprint file and checks that it belongs to a dataset of this size.

    Raises:
        UserError: it holds no fingerprint, or one of another dataset.
    """
    fingerprint = Fingerprint.from_json(read_json(path, "write one with --save_fingerprint"), f"{path}:")
    found = len(fingerprint.spacings), len(fingerprint.shapes_after_crop)
    if found != (cases, cases):
        raise UserError(
            f"{path}: {found[0]} spacings and {found[1]} shapes, but the dataset has {cases} training cases; "
            "measure it again without --fingerprint"
        )
    described = len(fingerprint.foreground_intensity_properties_per_channel)
    if described not in (0, channels):
        raise UserError(
            f"{path}: intensities of {described} channel(s), but the dataset has {channels}; "
            "measure it again without --fingerprint"
        )
    for row in (*fingerprint.spacings, *fingerprint.shapes_after_crop):
        if len(row) != 3 or min(row) <= 0:
            raise UserError(f"{path}: {list(row)} is no spacing or shape of three axes; measure the dataset again")
    return fingerprint
