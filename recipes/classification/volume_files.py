"""Volumes as pictures, one a slice, upright as radiologists look at them: NIfTI files and DICOM series."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import DataConfig
from ssmvision.recipes.fusion.sources import check_finite
from ssmvision.recipes.fusion.volumes import as_slices, read_nifti, slicing_axis
from ssmvision.recipes.fusion.windows import Window, volume_window
from ssmvision.recipes.segmentation.volumes import Grid, read_grid

if TYPE_CHECKING:
    from ssmvision.recipes.dicom.series import Series

__all__ = ["NIFTI", "PATIENT", "SliceCache", "VolumeFile", "dicom_volumes", "nifti_volume", "slice_names"]

NIFTI = (".nii", ".nii.gz")
# Decoded slices that one process keeps; beyond it, the volumes that were read longest ago are read again.
KEPT_BYTES = 2**32
# How cases begin that are told by DICOM's PatientID.
PATIENT = "patient "
Headers = Sequence[tuple[Path, Any]]


@dataclass(frozen=True)
class VolumeFile:
    """A volume, and which of its slices are pictures; voxels are read on demand.

    Args:
        path: of a NIfTI file, or what to call a series in messages.
        files: of a DICOM series; empty for NIfTI.
        case: whose volume it is, where the file says so.
        axis: "axial", "coronal" or "sagittal", the direction across the slices.
        chosen: numbers of the slices, from the head, the front or the patient's right.
        count: slices in all.
        window: stored values of black and white; None: the smallest and largest of the volume.
        radiograph: a DICOM picture without a place in space.
        inverted: whether its small values are white, as DICOM's MONOCHROME1 has them.
    """

    path: Path
    files: tuple[Path, ...]
    case: str
    axis: str
    chosen: tuple[int, ...]
    count: int
    window: tuple[float, float] | None
    radiograph: bool = False
    inverted: bool = False

    def read(self) -> NDArray[Any]:
        """The chosen slices, (S, H, W) float32 in [0, 1], or (S, H, W, 3) uint8 with colour.

        Raises:
            UserError: the file is damaged, holds several volumes, a constant one, or values that are not finite.
        """
        values, grid = self._voxels()
        if values.min() == values.max():
            raise UserError(f"{self.path}: every voxel is {values.flat[0]:g}, which shows nothing; remove it")
        slices = as_slices(values, grid.affine, self.axis)[list(self.chosen)]
        if values.ndim == 4:
            return np.ascontiguousarray(slices, dtype=np.uint8)
        window = volume_window(values) if self.window is None else Window(*self.window)
        unit = np.ascontiguousarray(window.to_unit(slices))
        return 1 - unit if self.inverted else unit

    def _voxels(self) -> tuple[NDArray[Any], Grid]:
        if not self.files:
            source = read_nifti(self.path)
            assert source.grid is not None
            return source.values, source.grid
        from ssmvision.recipes.dicom.files import read_header

        series = _series(self.path, [(file, read_header(file)) for file in self.files], self.radiograph)
        values = series.voxels()
        check_finite(self.path, values)
        return values, series.grid


class SliceCache:
    """Slices of the volumes that were read last; each process that loads pictures has its own."""

    def __init__(self, most: int = KEPT_BYTES) -> None:
        self.most = most
        self._kept: OrderedDict[VolumeFile, NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[type[SliceCache], tuple[int]]:
        """Without the slices."""
        return SliceCache, (self.most,)

    def read(self, volume: VolumeFile, place: int) -> NDArray[Any]:
        """A slice, by its place among those chosen; see `VolumeFile.read`."""
        if volume in self._kept:
            self._kept.move_to_end(volume)
        else:
            self._kept[volume] = volume.read()
            self._bytes += self._kept[volume].nbytes
        slices = self._kept[volume]
        while self._bytes > self.most and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        picture: NDArray[Any] = slices[place]
        return picture


def nifti_volume(path: Path, config: DataConfig) -> VolumeFile:
    """A NIfTI file; reads its header only.

    Raises:
        UserError: damaged, or without a usable geometry.
    """
    return _volume(path, (), "", read_grid(path), config)


def dicom_volumes(folder: Path, config: DataConfig) -> list[VolumeFile]:
    """The series below a folder; reads headers only. Files that are not DICOM are left out.

    Radiographs, which have no place in space, are pictures of their own even where they share a series.

    Raises:
        UserError: a DICOM file that cannot be read, or a series that is no volume (a missing slice, say); or pydicom is
            not installed.
    """
    from ssmvision.recipes.dicom.files import read_header
    from ssmvision.recipes.dicom.scan import scan

    found = scan(folder)
    if found.series and found.refused:
        raise found.refused[0][1]
    volumes = []
    for one in found.series:
        headers = [(file, read_header(file)) for file in one.files]
        radiographs = not any(map(_has_place, (header for _, header in headers)))
        for group in [[pair] for pair in headers] if radiographs else [headers]:
            path = group[0][0] if len(group) == 1 else one.folder
            volumes.append(_dicom_volume(path, group, radiographs, config))
    return volumes


def _has_place(header: Any) -> bool:
    return bool(header.get("ImagePositionPatient") or header.get("PerFrameFunctionalGroupsSequence"))


def _dicom_volume(path: Path, headers: Headers, radiograph: bool, config: DataConfig) -> VolumeFile:
    first = headers[0][1]
    inverted = radiograph and first.get("PhotometricInterpretation") == "MONOCHROME1"
    patient = str(first.get("PatientID") or "")
    series = _series(path, headers, radiograph)
    if series.tilt_degrees:
        tilt = f"{series.tilt_degrees:.1f} degrees"
        raise UserError(f"{path}: the gantry was tilted by {tilt}; straighten the series first")
    volume = _volume(path, tuple(file for file, _ in headers), patient and PATIENT + patient, series.grid, config)
    return replace(volume, radiograph=radiograph, inverted=inverted)


def _series(path: Path, headers: Headers, radiograph: bool) -> Series:
    from ssmvision.recipes.dicom.series import series_from

    for _, header in headers if radiograph else ():
        header.ImagePositionPatient, header.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.SliceThickness = [1, 1], 1
        if header.get("PhotometricInterpretation") == "MONOCHROME1":
            header.PhotometricInterpretation = "MONOCHROME2"
    return series_from(path, headers)


def _volume(path: Path, files: tuple[Path, ...], case: str, grid: Grid, config: DataConfig) -> VolumeFile:
    axis = _axis(grid, config)
    count = _count(grid, axis)
    return VolumeFile(path, files, case, axis, tuple(_chosen(count, config.slices)), count, config.window)


def _axis(grid: Grid, config: DataConfig) -> str:
    """A single slice is a picture as it is; else see `slicing_axis`."""
    flat = [name for name in ("sagittal", "coronal", "axial") if _count(grid, name) == 1]
    return flat[0] if len(flat) == 1 else slicing_axis(grid, config.slice_axis)


def _count(grid: Grid, axis: str) -> int:
    return int(as_slices(np.broadcast_to(np.uint8(0), grid.shape), grid.affine, axis).shape[0])


def _chosen(count: int, slices: str | int) -> Iterable[int]:
    if slices == "all":
        return range(count)
    wanted = 1 if slices == "middle" else int(slices)
    return range(count) if wanted >= count else [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def slice_names(name: str, volume: VolumeFile) -> Sequence[str]:
    """A name for each picture of a volume of this name; slices are counted from 1."""
    if volume.count == 1:
        return [name]
    return [f"{name} slice {i + 1}" for i in volume.chosen]
