"""Checks the files of one case: readable, finite, on one grid, and labels from the list."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.checking.cases import CheckCase, Split
from ssmvision.recipes.checking.findings import Finding, Findings
from ssmvision.recipes.checking.geometry import check_header, compare_grids
from ssmvision.recipes.checking.reading import flags_found, load
from ssmvision.recipes.segmentation.label_ids import count_ids, some_of, suggest_mapping, whole_numbers
from ssmvision.recipes.segmentation.volumes import Grid

__all__ = ["CaseReport", "CheckTask", "check_case"]

# A map with more ids than this holds intensities, and a list of them would help nobody.
MANY_IDS = 1000


@dataclass(frozen=True)
class CheckTask:
    """What a worker needs to check one case.

    Args:
        case: the files.
        channels: how many there should be; None: unknown.
        label_ids: allowed ids; None: unknown.
        single_channel_files: a fourth axis is an error.
    """

    case: CheckCase
    channels: int | None
    label_ids: tuple[int, ...] | None
    single_channel_files: bool


@dataclass(frozen=True)
class CaseReport:
    """What one case holds and what is wrong with it.

    Args:
        id, split: of the case.
        findings: errors, warnings and notes.
        channels: image channels found.
        shape: voxels, stored axis order; empty if unreadable.
        spacing_mm: voxel edges.
        orientation: axis codes, such as "RAS".
        labels: id to number of voxels.
        digest: of the voxels of all channels, to find copies.
    """

    id: str
    split: Split
    findings: tuple[Finding, ...] = ()
    channels: int = 0
    shape: tuple[int, ...] = ()
    spacing_mm: tuple[float, ...] = ()
    orientation: str = ""
    labels: dict[int, int] = field(default_factory=dict)
    digest: str = ""


def check_case(task: CheckTask) -> CaseReport:
    """Reads all files of a case and checks them; a file that cannot be read is a finding like the others."""
    if task.case.dicom:
        from ssmvision.recipes.checking.dicom import check_dicom_case

        return check_dicom_case(task)
    findings = Findings(task.case.id)
    digest, channels, grid = hashlib.blake2b(digest_size=16), 0, None
    for path in task.case.images:
        loaded = load(findings, path)
        if loaded is None:
            continue
        data, own = loaded
        check_header(findings, own)
        _check_intensities(findings, path, data)
        digest.update(repr(data.shape).encode() + np.ascontiguousarray(data).tobytes())
        channels += _count_channels(findings, path, data, task)
        if grid is None:
            grid = own
        else:
            compare_grids(findings, own, grid, "first channel")
    complete = grid is not None and not any(f.level == "error" for f in findings.found)
    if complete and task.channels is not None and channels != task.channels:
        problem = f"{channels} channel(s), expected {task.channels}"
        findings.error(task.case.images[0], problem, "add or remove files, or correct the list of channels")
    labels = {} if task.case.label is None else _check_label(findings, task.case.label, grid, task.label_ids)
    if grid is None:
        return CaseReport(task.case.id, task.case.split, tuple(findings.found), labels=labels)
    codes = "".join(str(code) for code in aff2axcodes(grid.affine))
    spacing = grid.spacing_mm
    seal = digest.hexdigest() if complete else ""
    found = tuple(findings.found)
    return CaseReport(task.case.id, task.case.split, found, channels, grid.shape, spacing, codes, labels, seal)


def _check_intensities(findings: Findings, path: Path, data: NDArray[Any]) -> None:
    bad = ~np.isfinite(data)
    if bad.any():
        nan, first = int(np.isnan(data).sum()), np.argwhere(bad)[0].tolist()
        findings.error(
            path,
            f"{nan} voxel(s) are NaN and {int(bad.sum()) - nan} infinite, the first at {first}",
            "replace them, for example by the background intensity",
        )
    elif data.min() == data.max():
        findings.error(path, f"every voxel is {data.flat[0]}", "export it again, or remove the case")


def _count_channels(findings: Findings, path: Path, data: NDArray[Any], task: CheckTask) -> int:
    if data.ndim == 3:
        return 1
    found = int(data.shape[3])
    if task.single_channel_files and found > 1:
        findings.error(
            path,
            f"has four axes, {' x '.join(map(str, data.shape))}, where one file per channel is expected",
            "split it into CASE_0000, CASE_0001, ...; pick one time point of a series",
        )
    elif task.channels is None and found > 1:
        findings.note(path, f"its fourth axis is taken as {found} channels")
    return found


def _check_label(findings: Findings, path: Path, grid: Grid | None, ids: tuple[int, ...] | None) -> dict[int, int]:
    """Checks a label map; ids with their numbers of voxels."""
    loaded = load(findings, path)
    if loaded is None:
        return {}
    data, own = loaded
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim == 4:
        shape = " x ".join(map(str, data.shape))
        findings.error(path, f"a label map with four axes, {shape}", "store one id per voxel, three axes")
        return {}
    check_header(findings, own)
    if grid is not None:
        compare_grids(findings, own, grid, "image")
    if bad := int((~np.isfinite(data)).sum()):
        findings.error(path, f"{bad} voxel(s) are NaN or infinite", "give every voxel an id")
        return {}
    try:
        with flags_found(findings, path):
            found = count_ids(whole_numbers(path, data))
    except UserError as error:
        findings.refused(error, path)
        found = count_ids(np.rint(data).astype(np.int64))
    _check_ids(findings, path, found, ids)
    return found if len(found) <= MANY_IDS else {}


def _check_ids(findings: Findings, path: Path, found: dict[int, int], ids: tuple[int, ...] | None) -> None:
    unknown = {i: n for i, n in found.items() if (i < 0 if ids is None else i not in ids)}
    if unknown:
        allowed = "ids from 0 up" if ids is None else f"the list {sorted(ids)}"
        mapping = some_of(suggest_mapping(found, ids))
        findings.error(
            path,
            f"ids outside {allowed}, with their voxels: {some_of(unknown)}",
            f"correct the map (ssmvision align; suggested mapping: {mapping}), or add the ids to 'labels' of "
            "dataset.json",
        )
    if set(found) == {0}:
        findings.warning(path, "every voxel is background (0)", "confirm that the case is empty, or restore its labels")
