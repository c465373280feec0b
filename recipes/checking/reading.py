"""Reads a NIfTI file for a check: what cannot be read, and what is read with a warning, are findings."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.segmentation.nifti import flags_to
from ssmvision.recipes.segmentation.volumes import Grid, read_array

__all__ = ["flags_found", "load"]


def load(findings: Findings, path: Path) -> tuple[NDArray[Any], Grid] | None:
    """Voxels (X, Y, Z) or (X, Y, Z, C) and grid of a NIfTI file; None and an error where it cannot be read."""
    try:
        with flags_found(findings, path):
            return read_array(path)
    except UserError as error:
        findings.refused(error, path)
    except MemoryError:
        findings.error(path, "does not fit into memory", "use fewer --workers, or check its header")
    return None


def flags_found(findings: Findings, path: Path) -> AbstractContextManager[None]:
    """Turns the warnings about a file (`VolumeWarning`) into findings; others are passed on."""

    def tell(text: str) -> None:
        problem, _, fix = text.removeprefix(f"{path}: ").rpartition("; ")
        findings.warning(path, problem, fix)

    return flags_to(tell)
