"""Writes one DICOM series, and its labels, as NIfTI files that are proven on re-reading."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import read_header
from ssmvision.recipes.dicom.labels import LabelFile, Overlap, label_map, matching, open_labels
from ssmvision.recipes.dicom.series import Series, series_from
from ssmvision.recipes.segmentation.volumes import TOLERANCE_VOXELS, read_grid
from ssmvision.recipes.segmentation.writing import write_map

__all__ = ["CaseTask", "ImportedCase", "import_case"]


@dataclass(frozen=True)
class CaseTask:
    """What a worker needs to import one case.

    Args:
        case: id.
        files: of the series.
        labels: files that refer to it; the one with wanted regions counts.
        image, label: files to write; `label` None: the case has no labels.
        roi: see `label_map`.
        overlap, missing, overwrite: see `ImportConfig`.
    """

    case: str
    files: tuple[Path, ...]
    labels: tuple[Path, ...]
    image: Path
    label: Path | None
    roi: dict[str, tuple[str, ...]]
    overlap: Overlap
    missing: str
    overwrite: bool


@dataclass(frozen=True)
class ImportedCase:
    """What was written; nothing here names a patient.

    Args:
        case: id.
        shape: voxels (columns, rows, slices).
        spacing_mm: their edges.
        millilitres: volume of each label.
        notes: what should be looked at.
    """

    case: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    millilitres: dict[str, float]
    notes: tuple[str, ...]


def import_case(task: CaseTask) -> ImportedCase:
    """Imports one case.

    Raises:
        UserError: the series or its labels are unusable, named by file; or a file cannot be written.
    """
    folder = task.files[0].parent
    series = series_from(folder, [(file, read_header(file)) for file in task.files])
    if series.coloured:
        raise UserError(f"{folder}: is in colour, which segmentation does not take; leave the series out")
    notes: list[str] = []
    if series.tilt_degrees:
        notes.append(f"the gantry was tilted by {series.tilt_degrees:.1f} degrees; the affine is sheared")
    labels = None
    if task.label is not None:
        chosen = _choose(task, folder)
        labels = label_map(chosen, series, task.roi, task.overlap, notes.append)
        write_map(task.label, labels, series.grid, task.overwrite)
        _prove(task.label, series)
    write_map(task.image, series.voxels(), series.grid, task.overwrite)
    _prove(task.image, series)
    voxel_ml = float(abs(np.linalg.det(series.grid.affine[:3, :3]))) / 1000
    counts = {}
    if labels is not None:
        counts = dict(zip(task.roi, np.bincount(labels.ravel(), minlength=len(task.roi) + 1)[1:].tolist(), strict=True))
    notes += [f"{name}: covers 0 voxel centres" for name, count in counts.items() if count == 0]
    volumes = {name: count * voxel_ml for name, count in counts.items()}
    return ImportedCase(task.case, series.grid.shape, series.grid.spacing_mm, volumes, tuple(notes))


def _choose(task: CaseTask, folder: Path) -> LabelFile:
    """The one label file with wanted regions; it must have some of every label."""
    opened = [open_labels(path) for path in task.labels]
    fitting = [labels for labels in opened if any(matching(labels.names, patterns) for patterns in task.roi.values())]
    if len(fitting) > 1:
        names = ", ".join(str(labels.path) for labels in fitting)
        raise UserError(f"{folder}: {len(fitting)} files hold wanted regions: {names}; keep the one that counts")
    if not fitting and task.missing == "background" and len(opened) == 1:
        fitting = opened
    labels = fitting[0] if fitting else opened[0]
    lacking = [name for name, patterns in task.roi.items() if not matching(labels.names, patterns)]
    if not fitting or (lacking and task.missing == "error"):
        names = ", ".join(map(repr, dict.fromkeys(name for one in opened for name in one.names.values())))
        raise UserError(
            f"{labels.path}: has no region for {', '.join(lacking)}, but {names or 'none at all'}; name it by --roi, "
            "or take such cases as empty by --missing background"
        )
    return labels


def _prove(path: Path, series: Series) -> None:
    """Reads a written file's affine back and compares where it puts every slice with where DICOM does."""
    affine = read_grid(path).affine
    columns, rows, _ = series.grid.shape
    limit = TOLERANCE_VOXELS * min(series.grid.spacing_mm)
    for k, plane in enumerate(series.planes):
        across, down = plane.directions[0] * plane.spacing[1], plane.directions[1] * plane.spacing[0]
        for i, j in ((0, 0), (columns - 1, 0), (0, rows - 1)):
            expected = (plane.position + i * across + j * down) * (-1, -1, 1)
            off = float(np.linalg.norm((affine @ (i, j, k, 1))[:3] - expected))
            if off > limit:
                raise UserError(
                    f"{path}: reads back with {plane.name} {off:.3g} mm aside (allowed {limit:.3g}); report this series"
                )
