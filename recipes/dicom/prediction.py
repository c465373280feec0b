"""Predicting on DICOM: a folder of series becomes jobs, whose label maps are DICOM-SEG or NIfTI files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import is_dicom, require, visible_files
from ssmvision.recipes.dicom.private_csv import write_private_csv
from ssmvision.recipes.dicom.scan import scan
from ssmvision.recipes.dicom.seg_writing import Algorithm, check_segment_names, write_segmentation
from ssmvision.recipes.dicom.series import Series, read_series
from ssmvision.recipes.evaluation.postprocessing import weights_digest
from ssmvision.recipes.segmentation.config import PredictConfig
from ssmvision.recipes.segmentation.inputs import NIFTI, image_files
from ssmvision.recipes.segmentation.job import Job
from ssmvision.recipes.segmentation.volumes import Grid, Volume, usable_volume
from ssmvision.recipes.segmentation.weights import ModelCard
from ssmvision.recipes.segmentation.writing import check_free

__all__ = ["DicomJob", "dicom_jobs", "holds_dicom", "write_mapping"]

ENDING = ".dcm"
DIGITS = 16  # of the weights' digest that tell one training from another
# Channels that name the machine: a series of another one is the wrong picture.
MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR", "PT": "PT", "PET": "PT"}


@dataclass(frozen=True)
class DicomJob(Job):
    """One series and where its label map goes.

    Args:
        images: the folder, or file, alone.
        output: a .dcm or NIfTI file.
        which: see `read_series`.
        labels: names of the model's ids, as pairs.
        algorithm: for the segmentation.
    """

    which: str | None
    labels: tuple[tuple[str, int], ...]
    algorithm: Algorithm

    @cached_property
    def series(self) -> Series:
        """Headers of the series, read once."""
        return read_series(self.images[0], self.which)

    def grid(self) -> Grid:
        """Where the voxels lie.

        Raises:
            UserError: as `read_series`.
        """
        return self.series.grid

    def volume(self, channels: Sequence[str]) -> Volume:
        """The voxels, as `read_image` gives those of a NIfTI file.

        Raises:
            UserError: the series cannot be decoded, is in colour, or of another modality than the model's channel.
        """
        series, expected = self.series, MODALITIES.get(channels[0].strip().upper())
        if series.coloured:
            raise UserError(f"{series.path}: is in colour; the model expects {channels[0]}")
        if expected is not None and series.modality != expected:
            raise UserError(
                f"{series.path}: is of the modality {series.modality or 'unknown'}; the model expects {channels[0]}"
            )
        return usable_volume(series.voxels()[None], series.grid)

    def write(self, labels: NDArray[np.unsignedinteger[Any]], grid: Grid, overwrite: bool) -> None:
        """Writes the label map in the format that the output's name ends in.

        Raises:
            UserError: it cannot be written.
        """
        if self.output.suffix.lower() == ENDING:
            write_segmentation(self.output, labels, self.series, dict(self.labels), self.algorithm, overwrite)
        else:
            super().write(labels, grid, overwrite)


def holds_dicom(source: Path) -> bool:
    """Whether an input is DICOM: a file of it, or a folder without volumes of its own and with DICOM in or below it."""
    if source.is_file():
        return not source.name.lower().endswith(NIFTI) and is_dicom(source)
    return source.is_dir() and not image_files(source) and any(map(is_dicom, visible_files(source, deep=True)))


def dicom_jobs(config: PredictConfig, card: ModelCard) -> list[Job]:
    """One job for each folder that holds an image series, numbered in the order of their paths.

    Names of folders may be those of patients, so outputs are called case_001 and so on unless one is named.

    Raises:
        UserError: there is no series, the model takes several channels, or formats and names contradict each other.
    """
    ending = _ending(config)
    require(config.input, *(("pydicom", "highdicom") if ending == ENDING else ("pydicom",)))
    if len(card.channels) != 1:
        raise UserError(
            f"{config.input}: a DICOM series is one channel, the model expects {len(card.channels)}, "
            f"{list(card.channels)}; write one NIfTI file per channel"
        )
    folders = [config.input] if config.input.is_file() else _folders(config.input)
    named = config.output.name.lower().endswith((ENDING, *NIFTI))
    if named and len(folders) > 1:
        raise UserError(f"{config.output}: a file cannot take the results of {len(folders)} series; give a folder")
    if not named and config.output.resolve() == config.input.resolve():
        raise UserError(f"{config.output}: is the input folder, which is never written to; choose another output")
    if ending == ENDING:
        check_segment_names(card.labels)
    digest = weights_digest(config.model if config.model.is_dir() else config.model.parent)
    algorithm = Algorithm(str(card.architecture["name"]), digest[:DIGITS])
    width = max(3, len(str(len(folders))))
    outputs = [config.output / f"case_{i:0{width}d}{ending}" for i in range(1, len(folders) + 1)]
    return [
        DicomJob((folder,), config.output if named else output, config.series, tuple(card.labels.items()), algorithm)
        for folder, output in zip(folders, outputs, strict=True)
    ]


def _ending(config: PredictConfig) -> str:
    """Of the outputs: as the format says, else as the output's name does, else .dcm."""
    name = config.output.name.lower()
    found = next((ending for ending in (ENDING, *reversed(NIFTI)) if name.endswith(ending)), None)
    wanted = {"auto": found or ENDING, "dicom": ENDING, "nifti": found if found in NIFTI else ".nii.gz"}
    ending = str(wanted[config.output_format])
    if found is not None and found != ending:
        raise UserError(f"{config.output}: its ending does not fit output_format {config.output_format}; change one")
    return ending


def _folders(root: Path) -> list[Path]:
    """Folders with images of a series, or with files that cannot be read, which then fail by name."""
    found = scan(root)
    for series in found.series:
        if len({file.parent for file in series.files}) > 1:
            raise UserError(
                f"{series.folder}: the files of one series lie in {len({f.parent for f in series.files})} folders; put "
                "them into one"
            )
    files = [file for series in found.series for file in series.files] + [path for path, _ in found.refused]
    if not files:
        raise UserError(f"{root}: 0 DICOM images found; give the folder of a series, or of several such folders")
    return sorted({file.parent for file in files})


def write_mapping(path: Path, jobs: Sequence[Job], overwrite: bool) -> None:
    """Writes a CSV of outputs and inputs, which may name patients, readable by its owner only.

    Raises:
        UserError: it exists, or cannot be written.
    """
    check_free(path, overwrite)
    write_private_csv(path, ("output", "input"), ((job.output.name, job.images[0]) for job in jobs))
