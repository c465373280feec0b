"""Reads a NIfTI file for a check: what cannot be read, and what is read with a warning, are findings."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.segmentation.volumes import Grid, VolumeWarning, read_array

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


@contextmanager
def flags_found(findings: Findings, path: Path) -> Iterator[None]:
    """Turns the warnings about a file (`VolumeWarning`) into findings; others are passed on."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", VolumeWarning)
        try:
            yield
        finally:
            for message in dict.fromkeys(str(w.message) for w in told if issubclass(w.category, VolumeWarning)):
                problem, _, fix = message.removeprefix(f"{path}: ").rpartition("; ")
                findings.warning(path, problem, fix)
    for other in told:
        if not issubclass(other.category, VolumeWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
