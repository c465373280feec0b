"""Puts slices in order along their normal and checks that they make one regular grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.planes import Plane

__all__ = ["LPS_TO_RAS", "Stack", "stack_planes"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Share of a slice distance by which positions, and of a pixel by which slices aside of each other, may be off.
TOLERANCE = 0.02
# Differences of pixel sizes (mm) and of direction cosines that rounding explains.
ROUNDING = 1e-4


@dataclass(frozen=True)
class Stack:
    """Slices in order, on one grid.

    Args:
        planes: along the normal of the first.
        affine: (4, 4) float64, (column, row, slice) to millimetres (RAS+).
        tilt_degrees: between the slices' normal and the line through their first pixels; 0 unless the gantry was
            tilted, which shears the grid.
    """

    planes: tuple[Plane, ...]
    affine: NDArray[np.float64]
    tilt_degrees: float


def stack_planes(path: Path, planes: Sequence[Plane]) -> Stack:
    """Orders slices and finds their grid.

    Args:
        path: of the series, for messages.
        planes: at least one, in any order.

    Raises:
        UserError: slices differ in size or direction, are missing, repeated or unevenly spaced, or are shifted
            aside; or there is one, of unknown thickness.
    """
    _check_alike(planes)
    first = planes[0]
    normal = first.normal
    ordered = sorted(planes, key=lambda plane: float(plane.position @ normal))
    positions = np.array([plane.position for plane in ordered])
    if len(ordered) == 1:
        if not first.depth:
            raise UserError(f"{first.file}: one slice with no SliceThickness, so its depth is unknown; export it again")
        step = normal * first.depth
    else:
        _check_gaps(path, [plane.name for plane in ordered], positions @ normal)
        step = (positions[-1] - positions[0]) / (len(ordered) - 1)
        _check_line(path, ordered, positions, step)
    aside = float(np.linalg.norm(step - (step @ normal) * normal))
    tilted = aside > TOLERANCE * min(first.spacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.directions[0] * first.spacing[1], first.directions[1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    tilt = float(np.degrees(np.arctan2(aside, step @ normal))) if tilted else 0.0
    return Stack(tuple(ordered), LPS_TO_RAS @ affine, tilt)


def _check_alike(planes: Sequence[Plane]) -> None:
    first = planes[0]
    for plane in planes[1:]:
        compared = (
            ("Rows", plane.size[1], first.size[1]),
            ("Columns", plane.size[0], first.size[0]),
            ("PhotometricInterpretation", plane.photometric, first.photometric),
            ("PixelSpacing", plane.spacing, first.spacing),
            ("ImageOrientationPatient", tuple(plane.directions.flat), tuple(first.directions.flat)),
        )
        for name, found, expected in compared:
            same = np.allclose(found, expected, atol=ROUNDING) if isinstance(found, tuple) else found == expected
            if not same:
                shown = f"{name} is {_text(found)}, but {_text(expected)} in {first.name}"
                raise UserError(
                    f"{plane.file.with_name(plane.name)}: {shown}; put slices of one size and direction into a folder"
                )


def _text(value: object) -> str:
    return f"[{', '.join(f'{x:g}' for x in value)}]" if isinstance(value, tuple) else str(value)


def _check_gaps(path: Path, names: Sequence[str], places: NDArray[np.float64]) -> None:
    gaps = np.diff(places)
    usual = float(np.median(gaps))
    for gap, (before, after) in zip(gaps, pairwise(names), strict=True):
        if gap <= TOLERANCE * max(usual, 1e-3):
            raise UserError(
                f"{path}: {before} and {after} lie at one place; leave one of them out, or, where they are two times "
                "or echoes of one series, put each into a folder of its own"
            )
        if abs(gap - usual) > TOLERANCE * usual:
            raise UserError(
                f"{path}: {before} and {after} are {gap:.3f} mm apart, the others {usual:.3f} mm; "
                "a slice is missing or the distances differ: complete or resample the series"
            )


def _check_line(path: Path, planes: Sequence[Plane], positions: NDArray[np.float64], step: NDArray[np.float64]) -> None:
    """The first pixels of all slices lie on one line: each where the grid puts it."""
    expected = positions[0] + np.arange(len(planes))[:, None] * step
    off = np.linalg.norm(positions - expected, axis=1)
    # Rounded positions add up to a few hundredths of a slice along the line; a shift of the table is pixels.
    limit = 0.25 * min(*planes[0].spacing, float(np.linalg.norm(step)))
    if off.max() > limit:
        plane = planes[int(off.argmax())]
        raise UserError(
            f"{path}: {plane.name} lies {off.max():.3f} mm away from the line through the other slices; the patient "
            "or the table moved: resample the series, or leave the moved slices out"
        )
