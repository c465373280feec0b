"""Settings of `ssmvision check`: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["CheckConfig", "LayoutName"]

LayoutName = Literal["auto", "nnunet", "decathlon", "bids", "pairs", "dicom"]


@dataclass(frozen=True)
class CheckConfig:
    """Looks at every file of a dataset and lists what is wrong, with the fix; ends with status 2 on errors.

    Args:
        data: dataset folder, or a MONAI / Decathlon datalist JSON file.
        layout: how the folder is organised; "auto" goes by what is in it and says what it took it for.
        json: also write the report to this file.
        workers: processes that read cases; 0: one per CPU core, at most 8.
        overwrite: replace an existing report.
    """

    data: Path
    layout: LayoutName = "auto"
    json: Path | None = None
    workers: int = 0
    overwrite: bool = False
