"""Reads a NIfTI file for a check: what cannot be read, and what readers mend silently, are findings."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.checking.findings import Findings
from ssmvision.recipes.segmentation.volumes import Grid, read_array

__all__ = ["load"]


def load(findings: Findings, path: Path) -> tuple[NDArray[Any], Grid] | None:
    """Voxels (X, Y, Z) or (X, Y, Z, C) and grid of a NIfTI file; None and an error where it cannot be read."""
    try:
        with _repairs(findings, path), np.errstate(invalid="ignore"):
            data, grid = read_array(path)
            _check_size(findings, path)
    except UserError as error:
        findings.refused(error, path)
    except MemoryError:
        findings.error(path, "does not fit into memory", "use fewer --workers, or check its header")
    else:
        return data, grid
    return None


def _check_size(findings: Findings, path: Path) -> None:
    """Finds files that go on after the voxels that the header promises: its shape or type may be wrong."""
    proxy = nibabel.load(path).dataobj  # type: ignore[attr-defined]
    promised = int(proxy.offset) + math.prod(proxy.shape) * int(proxy.dtype.itemsize)
    found = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            file.seek(-4, os.SEEK_END)
            found = int.from_bytes(file.read(4), "little")  # of the unpacked data, modulo 2^32
            promised %= 1 << 32
    if found > promised:
        shape = " x ".join(map(str, proxy.shape))
        findings.warning(
            path,
            f"{found - promised} bytes follow the voxels of the header's shape, {shape} of {proxy.dtype}",
            "check that the header gives the true shape and type",
        )


@contextmanager
def _repairs(findings: Findings, path: Path) -> Iterator[None]:
    """Turns what nibabel mends in a header while reading, and only logs, into warnings."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("nibabel.global")
    others, logger.handlers = logger.handlers, [handler]
    try:
        yield
    finally:
        logger.handlers = others
        for message in dict.fromkeys(said):
            findings.warning(path, f"the header is at fault: {message}", "write the file again with a valid header")
