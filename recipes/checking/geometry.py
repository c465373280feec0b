"""Checks of a volume's geometry: its header against itself, and against another volume's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.segmentation.volumes import Grid, check_same_grid, length_unit

__all__ = ["check_header", "compare_grids"]

# Share of a voxel edge, or cosine of an angle, below which differences are rounding in the header's 32-bit numbers.
ROUNDING = 1e-3


def check_header(findings: Findings, grid: Grid) -> None:
    """Finds headers that programs may read differently: sheared axes, two affines, no affine, other units."""
    directions = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    cosines = (directions.T @ directions)[np.triu_indices(3, 1)]
    straight = np.abs(cosines).max() <= ROUNDING
    if not straight:
        angles = ", ".join(f"{angle:.1f}" for angle in np.degrees(np.arccos(np.clip(cosines, -1, 1))))
        findings.warning(
            grid.path,
            f"the axes are not at right angles: {angles} degrees (x-y, x-z, y-z); programs that know only a rotation "
            "place it elsewhere",
            "resample it to a straight grid",
        )
    header = grid.header
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if qform == 0 and sform == 0:
        findings.warning(
            grid.path,
            "holds no orientation (qform and sform code 0): left and right are a guess",
            "export it again with its orientation, or set the sform",
        )
    if qform > 0 and sform > 0 and straight:  # a qform cannot hold other angles
        _compare_forms(findings, grid)
    _check_units(findings, grid)


def _compare_forms(findings: Findings, grid: Grid) -> None:
    try:
        with np.errstate(invalid="ignore"):
            qform, sform = grid.header.get_qform(), grid.header.get_sform()
    except ValueError as error:
        findings.warning(grid.path, f"its qform cannot be read ({error})", "set the qform from the sform")
        return
    if not np.isfinite(qform).all():
        findings.warning(grid.path, f"its qform is {qform.round(4).tolist()}", "set the qform from the sform")
        return
    distance = _corner_distance(grid.shape, qform, sform)
    if distance > ROUNDING * min(np.linalg.norm(sform[:3, :3], axis=0)):
        findings.warning(
            grid.path,
            f"qform and sform place a corner {distance:.3g} apart; programs differ in which they read (here the sform)",
            "set both to the right one",
        )


def _check_units(findings: Findings, grid: Grid) -> None:
    unit = length_unit(grid.header)
    if unit not in ("mm", "unknown"):
        findings.warning(grid.path, f"lengths are in {unit}; other programs read them as mm", "rewrite them in mm")
    stored = np.array([float(edge) for edge in grid.header["pixdim"][1:4]])
    own = np.linalg.norm(grid.header.get_best_affine()[:3, :3], axis=0)
    axes = 2 if grid.stored_2d else 3
    if not np.all(np.abs(stored - own)[:axes] <= ROUNDING * own[:axes]):
        findings.warning(
            grid.path,
            f"voxel size is {_numbers(stored)} by pixdim, {_numbers(own)} by the affine",
            "set pixdim to the right one: programs differ in which they read",
        )


def compare_grids(findings: Findings, found: Grid, expected: Grid, what: str) -> None:
    """Finds whether a file covers other voxels than another: by shape, voxel size or place, with numbers.

    Files that training takes for equal (see `volumes.check_same_grid`: corners within a quarter of a voxel) but whose
    voxel sizes differ by more than rounding get a warning.

    Args:
        findings: receives at most one finding.
        found: the file to blame.
        expected: the grid it should lie on.
        what: name of the expected file's role, "image" or "first channel".
    """
    other = f"its {what} {expected.path.name}"
    if found.shape != expected.shape:
        problem = f"shape {_numbers(found.shape)}, but {other} has {_numbers(expected.shape)}"
        findings.error(
            found.path, problem, "resample one onto the other's grid (ssmvision align), or exchange the wrong file"
        )
        return
    distance = _corner_distance(found.shape, found.affine, expected.affine)
    off = np.abs(np.subtract(found.spacing_mm, expected.spacing_mm)) > ROUNDING * np.array(expected.spacing_mm)
    sizes = f"voxel size {_numbers(found.spacing_mm)} mm, but {other} has {_numbers(expected.spacing_mm)} mm"
    try:
        check_same_grid(found, expected)
    except UserError:
        problem = (
            f"the affine places a corner {distance:.3g} mm from where {other} has it; found "
            f"{found.affine.round(4).tolist()}, expected {expected.affine.round(4).tolist()}"
        )
        findings.error(
            found.path,
            sizes if off.any() else problem,
            "copy the header if the voxels match, else resample (ssmvision align)",
        )
        return
    if off.any():
        problem = f"{sizes}; no corner is more than {distance:.2g} mm off, which training takes for rounding"
        findings.warning(found.path, problem, "copy the header if the voxels match")


def _corner_distance(shape: tuple[int, ...], one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], dtype=np.float64)
    corners[:, :3] *= np.array(shape) - 1
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def _numbers(values: object) -> str:
    return " x ".join(f"{float(value):.5g}" for value in np.asarray(values).ravel())
