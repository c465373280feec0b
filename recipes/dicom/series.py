"""A DICOM series as one volume with the scanner's geometry, or the reason why it is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import dicom_files, kind_of, read_header
from ssmvision.recipes.dicom.geometry import stack_planes
from ssmvision.recipes.dicom.pixels import read_pixels
from ssmvision.recipes.dicom.planes import Plane, planes_of
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["Series", "read_series", "series_from"]


@dataclass(frozen=True)
class Series:
    """The slices of a series in order, and where they lie; voxels are read on demand.

    Args:
        path: folder or file.
        uid: SeriesInstanceUID.
        modality: such as CT, MR or PT.
        frame_of_reference: UID of the coordinates that the geometry is in; "" where none is stated.
        planes: slices in order; `planes[k]` is `voxels()[:, :, k]`.
        grid: shape (columns, rows, slices) and affine (RAS+), with a NIfTI header that states the same.
        tilt_degrees: above 0 where the gantry was tilted, so that the affine is sheared.
    """

    path: Path
    uid: str
    modality: str
    frame_of_reference: str
    planes: tuple[Plane, ...]
    grid: Grid
    tilt_degrees: float

    @property
    def coloured(self) -> bool:
        """Whether voxels have red, green and blue."""
        return self.planes[0].photometric == "RGB"

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in the order of their first slice."""
        return tuple(dict.fromkeys(plane.file for plane in self.planes))

    def voxels(self) -> NDArray[Any]:
        """(X, Y, Z), or (X, Y, Z, 3) uint8 with colour; see `read_pixels`.

        Raises:
            UserError: a file is damaged, or no installed package decodes it.
        """
        return read_pixels(self.planes)


def read_series(path: Path, which: str | None = None) -> Series:
    """The series in a folder, or in a file of one or many slices; reads headers only.

    Args:
        path: a file, or a folder whose own files are read; contours, segmentations, doses and reports among them are
            left out.
        which: SeriesNumber or SeriesInstanceUID, where a folder holds several.

    Raises:
        UserError: several series, a missing or repeated slice, slices of different sizes or directions, uneven
            distances, no place in space, or a file that cannot be read, which is named; or pydicom is not installed.
    """
    files = dicom_files(path) if path.is_dir() else [path]
    headers = [(file, read_header(file)) for file in files]
    images = [(file, header) for file, header in headers if kind_of(header) == "image"]
    if not images:
        raise UserError(f"{path}: 0 DICOM images found; give the folder of one series")
    return series_from(path, _choose(path, images, which))


def series_from(path: Path, images: Sequence[tuple[Path, Any]]) -> Series:
    """The series that files make up; see `read_series`.

    Args:
        path: what to call it in messages.
        images: files of one series with their headers.
    """
    _check_copies(path, images)
    planes = [plane for file, header in images for plane in planes_of(file, header)]
    stack = stack_planes(path, planes)
    shape = (*stack.planes[0].size, len(planes))
    header = images[0][1]
    grid = Grid(path, shape, stack.affine, _nifti_header(stack.affine, stack.tilt_degrees > 0))
    return Series(
        path,
        str(header.get("SeriesInstanceUID", "")),
        str(header.get("Modality", "")),
        _frame_of_reference(images),
        stack.planes,
        grid,
        stack.tilt_degrees,
    )


def _choose(path: Path, images: Sequence[tuple[Path, Any]], which: str | None) -> list[tuple[Path, Any]]:
    groups: dict[str, list[tuple[Path, Any]]] = {}
    for file, header in images:
        uid = str(header.get("SeriesInstanceUID", ""))
        if not uid:
            raise UserError(f"{file}: has no SeriesInstanceUID; fetch or export it again")
        groups.setdefault(uid, []).append((file, header))
    chosen = groups
    if which is not None:
        chosen = {uid: group for uid, group in groups.items() if which in (uid, _number(group))}
    if len(chosen) == 1:
        return next(iter(chosen.values()))
    listed = ", ".join(_describe(group, [_number(g) for g in groups.values()]) for group in groups.values())
    if which is not None:
        raise UserError(f"{path}: {len(chosen)} series have the number or UID {which!r}; there are: {listed}")
    raise UserError(
        f"{path}: holds {len(groups)} series: {listed}; put each into a folder of its own, or, where the command has "
        "it, give --series NUMBER"
    )


def _number(group: Sequence[tuple[Path, Any]]) -> str:
    return str(group[0][1].get("SeriesNumber") or "")


def _describe(group: Sequence[tuple[Path, Any]], numbers: Sequence[str]) -> str:
    """Nothing that a person typed: descriptions may name the patient."""
    header, number = group[0][1], _number(group)
    name = f"number {number}" if number and numbers.count(number) == 1 else f"UID {header.SeriesInstanceUID}"
    size = f"{header.get('Columns', '?')} x {header.get('Rows', '?')}"
    return f"{name} ({header.get('Modality', 'unknown')}, {len(group)} file(s) of {size}, first {group[0][0].name})"


def _check_copies(path: Path, images: Sequence[tuple[Path, Any]]) -> None:
    seen: dict[str, Path] = {}
    for file, header in images:
        instance = str(header.get("SOPInstanceUID", file))
        if instance in seen:
            raise UserError(f"{path}: {seen[instance].name} and {file.name} are copies of one instance; remove one")
        seen[instance] = file


def _frame_of_reference(images: Sequence[tuple[Path, Any]]) -> str:
    first_file, first = images[0]
    expected = str(first.get("FrameOfReferenceUID") or "")
    for file, header in images[1:]:
        if str(header.get("FrameOfReferenceUID") or "") != expected:
            raise UserError(
                f"{file}: has another FrameOfReferenceUID than {first_file.name}, so they do not share coordinates; "
                "put slices of one scan into a folder"
            )
    return expected


def _nifti_header(affine: NDArray[np.float64], sheared: bool) -> Any:
    header = nibabel.Nifti1Header()
    header.set_data_shape((1, 1, 1))
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    # A quaternion cannot hold a shear; its zooms are those of the affine in any case.
    header.set_qform(affine, code="unknown" if sheared else "scanner")
    return header
