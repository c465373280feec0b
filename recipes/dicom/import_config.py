"""Settings of `ssmvision import`: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["ImportConfig"]


@dataclass(frozen=True)
class ImportConfig:
    """Makes an nnU-Net raw folder of NIfTI files out of DICOM series with contours (RTSTRUCT) or segmentations (SEG).

    Args:
        source: folder with the series and the labels that refer to them, at any depth.
        out: folder to write: dataset.json, imagesTr/case_001_0000.nii.gz, labelsTr/case_001.nii.gz and so on. Cases are
            numbered in the order of their paths; nothing that may name a patient is carried over.
        roi: what each label is made of, by its name: `--roi.tumour GTV-1 --roi.lung '[Lung_L, Lung_R]'`. Regions are
            named exactly, or else as a glob whatever the case (`'gtv*'`); labels get the ids 1, 2, ... in this order.
            Without any, the regions found are listed.
        modality: import only series of this kind, such as CT; null: all that have labels, which must be of one kind.
        channel: name of the image channel in dataset.json; null: the modality. "CT" makes training clip and scale by
            the dataset's intensities, any other name each image by its own.
        overlap: which label keeps a voxel that two claim, by their order in `roi`; "error" refuses the case.
        missing: what a case without any region of a label means; "error" refuses it, "background" takes it as empty.
        unlabelled: series that no label file refers to, such as scouts: leave them out, or put them into imagesTs.
        mapping: also write a CSV of cases, files and series there. It may name patients; its file is readable by its
            owner only.
        workers: processes that read cases; 0: one per CPU core, at most 8.
        overwrite: replace an earlier import of as many cases.
    """

    source: Path
    out: Path
    roi: dict[str, str | list[str]] = field(default_factory=dict)
    modality: str | None = None
    channel: str | None = None
    overlap: Literal["error", "first", "last"] = "error"
    missing: Literal["error", "background"] = "error"
    unlabelled: Literal["skip", "test"] = "skip"
    mapping: Path | None = None
    workers: int = 1
    overwrite: bool = False
