"""Settings of cross-validation: standard library only, so that a command line can read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["PostprocessConfig", "ReportConfig", "ValidateConfig"]


@dataclass(frozen=True)
class ValidateConfig:
    """Predictions of trainings for the cases that each held out, and their scores.

    Args:
        runs: run folders, such as the folds of a cross-validation, or the folder that holds these; each receives
            validation/CASE.nii.gz, scores.json and scores.csv. Cases that are there already and come from the same
            weights are kept.
        data: the dataset, where it no longer lies where the training found it; null: as in the run's config.json.
        overwrite: predict all cases again.
        overlap: of neighbouring windows, as a share of the patch, in [0, 1).
        tta: "mirror" averages the predictions of every window mirrored along all axes (4 or 8 times the work).
        mirror_axes: the axes to mirror, where not all.
        window_batch: windows per call of the network; halved where memory is short.
        memory_gb: main memory (10^9 bytes) that a case may take by its plan; null: what is free.
        device: "auto" takes the first GPU if there is one.
        threads: CPU threads of torch; null: torch's own choice.
        nsd_tolerance_mm: surfaces closer than this count as equal in the normalised surface Dice.
        nsd_tolerances_mm: the same for single classes, by name, where it differs.
        lesion_iou: 0: a lesion counts as found where any predicted voxel lies in it; above 0: connected components are
            paired one to one where their intersection over union is at least this.
        workers: processes that score a case each.
    """

    runs: tuple[Path, ...]
    data: Path | None = None
    overwrite: bool = False
    overlap: float = 0.5
    tta: Literal["none", "mirror"] = "none"
    mirror_axes: tuple[int, ...] = ()
    window_batch: int = 1
    memory_gb: float | None = None
    device: str = "auto"
    threads: int | None = None
    nsd_tolerance_mm: float = 1.0
    nsd_tolerances_mm: dict[str, float] | None = None
    lesion_iou: float = 0.0
    workers: int = 1


@dataclass(frozen=True)
class PostprocessConfig:
    """Decision, on held-out predictions, whether to keep only the largest component of the classes.

    Args:
        runs: run folders that `ssmvision validate` has been run on, usually all folds, or the folder that holds these;
            each receives postprocessing.json, which `ssmvision predict` then applies unless told otherwise.
        out: another file for the decision, to pass to `predict --postprocessing`; null: none.
        data: the dataset, where it no longer lies where the training found it; null: as in the run's config.json.
        overwrite: replace an earlier decision.
    """

    runs: tuple[Path, ...]
    out: Path | None = None
    data: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class ReportConfig:
    """One HTML file on one or several trainings, with CSV and JSON beside it.

    Args:
        runs: run folders that `ssmvision validate` has been run on, or folders of them: folds, seeds, other networks.
        out: the HTML file; tables go to files of the same name ending in .csv and .json.
        names: one for each run; runs of the same name are folds and seeds of one row of the table. Empty: the name of
            the network.
        data: the dataset, where it no longer lies where the training found it; null: as in the run's config.json.
        pictures: how many of the worst cases are pictured, per method.
        case_names: show the cases' ids, which are file names, instead of numbers. CSV and JSON always hold the ids.
        overwrite: replace the three files.
    """

    runs: tuple[Path, ...]
    out: Path = Path("report.html")
    names: tuple[str, ...] = ()
    data: Path | None = None
    pictures: int = 3
    case_names: bool = False
    overwrite: bool = False
