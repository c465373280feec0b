"""Reads the segments of a DICOM SEG as masks on the grid of the series that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.contours import OFF_PLANE, to_voxels
from ssmvision.recipes.dicom.files import guarded
from ssmvision.recipes.dicom.planes import Plane, planes_of
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["frame_slices", "read_frames", "segment_mask", "segment_numbers", "segments_of"]


def segments_of(header: Any) -> dict[int, str]:
    """Name by number of each segment, without the background of a LABELMAP."""
    segments = header.get("SegmentSequence") or ()
    names = {int(segment.SegmentNumber): str(segment.get("SegmentLabel", "")) for segment in segments}
    return {number: name for number, name in names.items() if number > 0}


def frame_slices(path: Path, header: Any, grid: Grid) -> NDArray[np.intp]:
    """Number of the slice that each frame of a SEG lies on: (frames,).

    Raises:
        UserError: frames have another size, direction or pixel size than the grid, or lie on no slice of it.
    """
    planes = planes_of(path, header)
    size, expected = planes[0].size, grid.shape[:2]
    if size != expected:
        raise UserError(
            f"{path}: its frames have {size[0]} x {size[1]} pixels, the series {expected[0]} x {expected[1]}; "
            "export it on the grid of its series"
        )
    corners = np.array([to_voxels(grid, _corners(plane)) for plane in planes])
    slices = np.rint(corners[:, 0, 2])
    across, down = (expected[0] - 1, 0, 0), (0, expected[1] - 1, 0)
    ideal = np.array([(0, 0, 0), across, down]) + slices[:, None, None] * np.array([0, 0, 1])
    wrong = (np.abs(corners - ideal).max(axis=(1, 2)) > OFF_PLANE) | (slices < 0) | (slices > grid.shape[2] - 1)
    if wrong.any():
        raise UserError(
            f"{path}: {int(wrong.sum())} of {len(planes)} frames lie on no slice of the series; export it on the grid "
            "of its series"
        )
    found: NDArray[np.intp] = slices.astype(np.intp)
    return found


def _corners(plane: Plane) -> NDArray[np.float64]:
    """(3, 3) first pixel, last of the first row, last of the first column, in mm (LPS)."""
    across = plane.directions[0] * plane.spacing[1] * (plane.size[0] - 1)
    down = plane.directions[1] * plane.spacing[0] * (plane.size[1] - 1)
    return np.stack([plane.position, plane.position + across, plane.position + down])


def segment_mask(path: Path, header: Any, number: int, grid: Grid) -> NDArray[np.bool_]:
    """One segment: (X, Y, Z) on the grid of its series.

    Args:
        path: the SEG.
        header: its data set; pixels are read from `path`, frame by frame.
        number: of the segment.
        grid: of the series.

    Raises:
        UserError: the SEG is FRACTIONAL, off the grid, or damaged.
    """
    with guarded(path, "its type cannot be read"):
        kind = str(header.get("SegmentationType", ""))
    if kind not in ("BINARY", "LABELMAP"):
        raise UserError(f"{path}: is {kind or 'of no SegmentationType'}, not labels; export it as BINARY or LABELMAP")
    slices = frame_slices(path, header, grid)
    owners = None if kind == "LABELMAP" else segment_numbers(path, header)
    frames = [k for k in range(len(slices)) if owners is None or owners[k] == number]
    mask = np.zeros(grid.shape, bool)
    for k, pixels in zip(frames, read_frames(path, frames), strict=True):
        mask[:, :, slices[k]] |= (number == pixels.T) if owners is None else pixels.T.astype(bool)
    return mask


def segment_numbers(path: Path, header: Any) -> list[int]:
    """Number of the segment that each frame is of.

    Raises:
        UserError: a frame does not say.
    """
    with guarded(path, "which segments its frames are of cannot be read"):
        groups = [
            next(g for g in (frame, header.get("SharedFunctionalGroupsSequence", [None])[0]) if _named(g))
            for frame in header.PerFrameFunctionalGroupsSequence
        ]
        return [int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for group in groups]


def _named(group: Any) -> bool:
    return group is not None and "SegmentIdentificationSequence" in group


def read_frames(path: Path, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    """(rows, columns) of each wanted frame; one at a time, since all of them may be larger than the volume.

    Raises:
        UserError: the file is damaged.
    """
    from pydicom.pixels.utils import iter_pixels

    frames = iter_pixels(path, indices=list(indices)) if indices else iter(())
    for _ in indices:
        with guarded(path, "its pixels cannot be decoded"):
            pixels = next(frames)
        yield pixels
