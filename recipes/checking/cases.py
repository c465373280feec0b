"""The cases of a dataset as the layouts find them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ssmvision.recipes.checking.findings import Findings

__all__ = ["CheckCase", "FoundDataset", "Split", "nifti_files"]

Split = Literal["training", "validation", "test"]


@dataclass(frozen=True)
class CheckCase:
    """One subject.

    Args:
        id: name.
        images: files of the channels; of a DICOM series its folder.
        label: file with the label map (DICOM: contours or a segmentation), or None.
        split: what the dataset keeps it for.
        dicom: read as DICOM.
    """

    id: str
    images: tuple[Path, ...]
    label: Path | None
    split: Split = "training"
    dicom: bool = False


@dataclass
class FoundDataset:
    """What a layout found.

    Args:
        layout: name of the layout, for people.
        root: the dataset's folder.
        description: the file that describes the dataset, or the folder where there is none.
        channels: names, or None where nothing lists them.
        labels: name to id, or None where nothing lists them.
        single_channel_files: the layout keeps one file per channel, so that a fourth axis is an error.
        cases: complete or not.
        findings: what is wrong with the layout itself.
    """

    layout: str
    root: Path
    description: Path
    channels: tuple[str, ...] | None = None
    labels: dict[str, int] | None = None
    single_channel_files: bool = False
    cases: list[CheckCase] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)

    def check_ids(self) -> None:
        """Finds cases of one id, also where only the case of letters differs, as some disks do not tell them apart."""
        count = Counter(case.id.casefold() for case in self.cases)
        for case in self.cases:
            if count[case.id.casefold()] > 1:
                self.findings.error(
                    case.images[0] if case.images else self.root,
                    f"case id {case.id!r} occurs {count[case.id.casefold()]} times",
                    "give every case its own name",
                )


def nifti_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """NIfTI files directly in a folder, and the other files there (hidden ones left out), sorted."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    is_nifti: Sequence[bool] = [path.name.lower().endswith((".nii", ".nii.gz")) for path in files]
    return [p for p, n in zip(files, is_nifti, strict=True) if n], [
        p for p, n in zip(files, is_nifti, strict=True) if not n
    ]
