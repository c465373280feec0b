"""A DICOM series as an image to fuse; needs pydicom (the extra `dicom`)."""

from __future__ import annotations

from pathlib import Path

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.series import read_series
from ssmvision.recipes.fusion.sources import Source, check_finite
from ssmvision.recipes.fusion.windows import Window, volume_window
from ssmvision.recipes.segmentation.volumes import RGB24

__all__ = ["read_dicom"]


def read_dicom(path: Path, window: Window | None = None) -> Source:
    """One file, or the series in a folder, as a volume with the scanner's geometry.

    Args:
        path: a file, or a folder with one series.
        window: stored values of black and white; None is the smallest and largest of the whole volume, or 0 to 255
            with colour.

    Raises:
        UserError: as `read_series` and `Series.voxels`; or a tilted gantry, whose sheared grid other tools misread.
    """
    series = read_series(path)
    if series.tilt_degrees:
        tilt = f"{series.tilt_degrees:.1f} degrees"
        raise UserError(f"{path}: the gantry was tilted by {tilt}; straighten the series first")
    values = series.voxels()
    check_finite(path, values)
    automatic = Window(0, 255) if series.coloured else volume_window(values)
    return Source(path, values, window or automatic, RGB24 if series.coloured else values.dtype, series.grid)
