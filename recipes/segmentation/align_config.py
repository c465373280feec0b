"""Settings of `ssmvision align`: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["AlignConfig"]


@dataclass(frozen=True)
class AlignConfig:
    """Brings a volume onto the grid of another one, by their places in space, and gives labels other ids.

    Args:
        source: NIfTI file to bring there: a label map or an image.
        like: NIfTI file with the wanted grid.
        output: file to write.
        mapping: old id to new id of a label map, such as {255: 1}; ids that are not named stay.
        interpolation: "nearest" for label maps, "linear" for images; "auto" takes whole numbers for labels.
        overwrite: replace an existing output.
    """

    source: Path
    like: Path
    output: Path
    mapping: dict[int, int] | None = None
    interpolation: Literal["auto", "nearest", "linear"] = "auto"
    overwrite: bool = False
