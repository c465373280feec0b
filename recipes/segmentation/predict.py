"""Predicts label maps for NIfTI files; one bad case does not stop the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.config import PredictConfig
from ssmvision.recipes.segmentation.datalist import strip_ending
from ssmvision.recipes.segmentation.infer import Predictor, load_model
from ssmvision.recipes.segmentation.volumes import read_image
from ssmvision.recipes.segmentation.writing import check_free, write_atomic, write_label_map

__all__ = ["predict_case", "run"]


@dataclass(frozen=True)
class Job:
    """The image files of one case and where its label map goes."""

    images: tuple[Path, ...]
    output: Path

    @property
    def probabilities(self) -> Path:
        """Where the class probabilities go, if asked for."""
        return self.output.with_name(f"{strip_ending(self.output)}_probabilities.npz")


def run(config: PredictConfig) -> list[Path]:
    """Writes one label map per case and returns their paths.

    Raises:
        UserError: the model or the arguments are unusable (nothing is written), or some cases failed (the others are
            written; the message lists every failure).
    """
    console = Console(stderr=True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    try:
        predictor = load_model(config.model, config.device, config.overlap, config.mirror_axes)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"predict: {error}") from error
    jobs = plan_jobs(config.input, config.output, len(predictor.channels))
    for job in jobs:
        for path in (job.output, *([job.probabilities] if config.save_probabilities else [])):
            check_free(path, config.overwrite, job.images)
    written, failed = [], []
    for i, job in enumerate(jobs, 1):
        try:
            predict_case(predictor, job, config.overwrite, config.save_probabilities)
        except (UserError, RuntimeError, MemoryError) as error:
            told = str(error) if isinstance(error, UserError) else f"{job.images[0]}: {error}"
            if len(jobs) == 1:
                raise UserError(told) from error
            failed.append(told)
            console.print(f"[{i}/{len(jobs)}] failed: {told}", markup=False, highlight=False, soft_wrap=True)
            continue
        written.append(job.output)
        console.print(f"[{i}/{len(jobs)}] {job.output}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        raise UserError(
            f"predict: {len(failed)} of {len(jobs)} case(s) failed; mend or remove them: " + "; ".join(failed)
        )
    return written


def predict_case(predictor: Predictor, job: Job, overwrite: bool, save_probabilities: bool) -> None:
    """Reads, predicts and writes one case on the input's exact grid."""
    volume = read_image(job.images, predictor.channels)
    logits = predictor.logits(volume.data, volume.grid.affine)
    labels = logits.argmax(0).numpy()
    if save_probabilities:
        values = logits.softmax(0).numpy()
        write_atomic(job.probabilities, lambda path: np.savez_compressed(path, probabilities=values), ".npz")
    write_label_map(job.output, labels, volume.grid, overwrite)


def plan_jobs(source: Path, output: Path, channels: int) -> list[Job]:
    """Groups the input's files by case.

    Args:
        source: file or folder.
        output: file for a file, or folder.
        channels: image files per case, unless a case is one file with all of them.

    Raises:
        UserError: no input, a missing channel, a file asked for as output of a folder, or that folder itself.
    """
    named_file = output.name.lower().endswith((".nii", ".nii.gz"))
    if source.is_dir():
        files = sorted(p for p in source.iterdir() if p.name.lower().endswith((".nii", ".nii.gz")) and p.is_file())
        if not files:
            raise UserError(f"{source}: 0 NIfTI files found; give a folder with *.nii.gz or one file")
        if output.resolve() == source.resolve():
            raise UserError(f"{output}: is the input folder, which is never written to; choose another output")
        if named_file:
            raise UserError(f"{output}: a file cannot take the results of a folder; give a folder as output")
    elif source.is_file():
        files = [source] if channels == 1 else _siblings(source)
    else:
        raise UserError(f"{source}: no such file or folder; check the input path")
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_case_name(file), []).append(file)
    jobs = []
    for name, images in groups.items():
        if len(images) not in (1, channels):
            raise UserError(
                f"{images[0].parent}: case {name!r} has {len(images)} file(s), the model expects {channels}; "
                f"name them {name}_0000.nii.gz to {name}_{channels - 1:04d}.nii.gz"
            )
        jobs.append(Job(tuple(images), output if named_file else output / f"{name}.nii.gz"))
    return jobs


def _case_name(file: Path) -> str:
    stem, _, number = strip_ending(file).rpartition("_")
    return stem if stem and len(number) == 4 and number.isdigit() else strip_ending(file)


def _siblings(file: Path) -> list[Path]:
    """All channel files of the case that `file` belongs to; the file alone if its name has no channel number."""
    name = _case_name(file)
    if name == strip_ending(file):
        return [file]
    ending = file.name[len(strip_ending(file)) :]
    return sorted(file.parent.glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))
