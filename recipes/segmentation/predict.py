"""Predicts label maps for NIfTI files and DICOM series; one bad case does not stop the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike
from rich.console import Console

from ssmvision.errors import UserError
from ssmvision.recipes.evaluation.postprocessing import Postprocessing, find_rule
from ssmvision.recipes.segmentation.config import PredictConfig
from ssmvision.recipes.segmentation.datalist import strip_ending
from ssmvision.recipes.segmentation.infer import Predictor, load_model
from ssmvision.recipes.segmentation.inputs import NIFTI, check_channel_files, check_channel_names, image_files
from ssmvision.recipes.segmentation.job import Job
from ssmvision.recipes.segmentation.maps import Maps, allocate, is_mapped, label_dtype
from ssmvision.recipes.segmentation.memory_plan import free_bytes
from ssmvision.recipes.segmentation.nifti import flags_to
from ssmvision.recipes.segmentation.volumes import Grid
from ssmvision.recipes.segmentation.writing import check_free, write_atomic, write_map

__all__ = ["Job", "Tell", "open_predictor", "predict_case", "predict_jobs", "run"]

Tell = Callable[[str], None]
# Room for an archive's directory and the head of the array in it.
ARCHIVE_BYTES = 1024


def run(config: PredictConfig) -> list[Path]:
    """Writes one label map per case and returns their paths.

    Raises:
        UserError: the model or the arguments are unusable (nothing is written), or some cases failed (the others are
            written; the message lists every failure).
    """
    console = Console(stderr=True)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    predictor = open_predictor(config)
    rule = find_rule(config.postprocessing, (config.model, *config.ensemble), predictor.labels)
    jobs = _jobs(config, predictor)
    for job in jobs:
        for path in job.outputs(config):
            check_free(path, config.overwrite, job.images)

    def tell(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if rule is not None:
        tell(f"post-processing {rule}; --postprocessing none turns it off")
    failed = predict_jobs(predictor, jobs, config, tell, rule)
    if failed and len(jobs) == 1:
        raise failed[jobs[0]]
    if failed:
        told = "; ".join(map(str, failed.values()))
        raise UserError(f"predict: {len(failed)} of {len(jobs)} case(s) failed; mend or remove them: {told}")
    return [job.output for job in jobs]


def _jobs(config: PredictConfig, predictor: Predictor) -> list[Job]:
    """The cases of the input, in the format that it has."""
    # pydicom and what goes with it load only where there is DICOM.
    from ssmvision.recipes.dicom.prediction import dicom_jobs, holds_dicom, write_mapping

    if holds_dicom(config.input):
        jobs = dicom_jobs(config, predictor.card)
        if config.mapping is not None:
            write_mapping(config.mapping, jobs, config.overwrite)
        return jobs
    only_dicom = {"output_format": config.output_format == "dicom", "series": config.series, "mapping": config.mapping}
    if given := [name for name, value in only_dicom.items() if value]:
        raise UserError(f"{config.input}: holds no DICOM, which {', '.join(given)} is for; leave it out")
    check_channel_names(config.input, predictor.channels)
    return plan_jobs(config.input, config.output, predictor.channels)


def predict_jobs(
    predictor: Predictor, jobs: Sequence[Job], config: PredictConfig, tell: Tell, rule: Postprocessing | None = None
) -> dict[Job, UserError]:
    """Predicts and writes case after case, going on after one that fails.

    Args:
        predictor: the model.
        jobs: files of each case.
        config: what is wanted and how much memory may be used.
        tell: takes what happens, line by line.
        rule: see `predict_case`.

    Returns:
        What went wrong, for each job that failed.
    """
    failed: dict[Job, UserError] = {}
    for i, job in enumerate(jobs, 1):
        start = f"[{i}/{len(jobs)}] "
        try:
            predict_case(predictor, job, config, lambda text, start=start: tell(start + text), rule)  # type: ignore[misc]
        except (UserError, RuntimeError, ValueError, MemoryError, OSError) as error:
            failed[job] = _told(error, job)
            if len(jobs) > 1:
                tell(f"{start}failed: {failed[job]}")
        else:
            tell(f"{start}{job.output}")
    return failed


def _told(error: Exception, job: Job) -> UserError:
    if isinstance(error, UserError):
        return error
    told = UserError(f"{job.images[0]}: {error}")
    told.__cause__ = error
    return told


def open_predictor(config: PredictConfig) -> Predictor:
    """The networks that the settings name, ready for use.

    Raises:
        UserError: they or the settings are unusable.
    """
    if config.memory_gb is not None and not config.memory_gb > 0:
        raise UserError(f"predict: memory_gb is {config.memory_gb}; give a number above 0 or null")
    if config.tta == "mirror" and config.mirror_axes:
        raise UserError("predict: both tta=mirror (all axes) and mirror_axes are given; give one of them")
    if config.tta not in ("none", "mirror"):
        raise UserError(f"predict: tta is {config.tta!r}; give none or mirror")
    axes = None if config.tta == "mirror" else config.mirror_axes
    try:
        return load_model(config.model, config.device, config.overlap, axes, config.ensemble, config.window_batch)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"predict: {error}") from error


def predict_case(
    predictor: Predictor, job: Job, config: PredictConfig, tell: Tell, rule: Postprocessing | None = None
) -> None:
    """Reads, predicts and writes one case on the input's exact grid.

    Args:
        predictor: the model.
        job: files.
        config: what is wanted and how much memory may be used.
        tell: takes the memory plan, line by line, before a voxel is read, and then what is odd about the files:
            voxels that are not finite are labelled as background, as is all of an image of a single value.
        rule: for stray components of the label map; other maps are left as the networks gave them.

    Raises:
        UserError: a file is unusable, or the memory does not suffice.
    """
    with flags_to(lambda text: tell(f"warning: {text}")):
        grid = job.grid()
        start = choose_placement(predictor, grid, config, tell)
        wanted = wanted_maps(predictor, grid, config)
        maps = Maps(**{name: allocate(shape, dtype, job.output.parent) for name, shape, dtype in wanted})
        volume = job.volume(predictor.channels)
    held, masked = [volume.data], volume.masked
    del volume
    if masked is None or not masked.all():
        # Nobody here holds on to the voxels, so that `fill` can let go of them once they are prepared.
        predictor.fill(maps, held.pop(), grid.affine, start)
    if masked is not None:
        maps.mask(masked)
    if maps.probabilities is not None:
        values = maps.probabilities
        write_atomic(
            job.probabilities,
            lambda path: np.savez_compressed(path, probabilities=values),
            ".npz",
            needed=values.nbytes + ARCHIVE_BYTES,
        )
    if maps.uncertainty is not None:
        write_map(job.uncertainty, maps.uncertainty, grid, config.overwrite)
    assert maps.labels is not None  # they are always wanted
    if rule is not None and (removed := rule.apply(maps.labels)):
        tell(f"post-processing removed {removed} voxel(s)")
    job.write(maps.labels, grid, config.overwrite)


def choose_placement(predictor: Predictor, grid: Grid, config: PredictConfig, tell: Tell) -> int:
    """Number of the first way to run that fits into the memory at hand; says what it needs.

    Raises:
        UserError: none does.
    """
    sizes = [math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in wanted_maps(predictor, grid, config)]
    mapped = sum(size for size in sizes if is_mapped(size))
    limit = free_bytes(torch.device("cpu")) if config.memory_gb is None else int(config.memory_gb * 1e9)
    reason = ""
    for i, plan in enumerate(predictor.memory_plans(grid.shape, grid.affine, sum(sizes) - mapped, mapped)):
        device = plan.placement.device
        lack = plan.lacks(limit, None if device.type == "cpu" else free_bytes(device))
        if lack is None:
            for line in plan.lines():
                tell(line)
            return i
        reason = lack
        tell(f"not {plan.placement}: {lack}")
    raise UserError(
        f"{grid.path}: shape {grid.shape} with {len(predictor.labels)} classes does not fit into memory: {reason}; "
        "free memory, raise memory_gb, or cut the volume"
    )


def wanted_maps(
    predictor: Predictor, grid: Grid, config: PredictConfig
) -> list[tuple[str, tuple[int, ...], DTypeLike]]:
    """Name in `Maps`, shape and type of the arrays to fill."""
    classes = len(predictor.labels)
    found: list[tuple[str, tuple[int, ...], DTypeLike]] = [("labels", grid.shape, label_dtype(classes))]
    if config.uncertainty:
        found.append(("uncertainty", grid.shape, np.float32))
    if config.probabilities:
        found.append(("probabilities", (classes, *grid.shape), np.float32))
    return found


def plan_jobs(source: Path, output: Path, channels: Sequence[str]) -> list[Job]:
    """Groups the input's files by case.

    Args:
        source: file or folder.
        output: file for a file, or folder.
        channels: names of those that a case has, one file each, or one file with all of them.

    Raises:
        UserError: no input, a missing channel, a file asked for as output of a folder, or that folder itself.
    """
    named_file = output.name.lower().endswith((".nii", ".nii.gz"))
    if source.is_dir():
        files = image_files(source)
        if not files:
            raise UserError(f"{source}: 0 NIfTI files found; give a folder with *.nii.gz or one file")
        if output.resolve() == source.resolve():
            raise UserError(f"{output}: is the input folder, which is never written to; choose another output")
        if named_file:
            raise UserError(f"{output}: a file cannot take the results of a folder; give a folder as output")
    elif source.is_file():
        files = [source] if len(channels) == 1 else _siblings(source)
    else:
        raise UserError(f"{source}: no such file or folder; check the input path")
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(_case_name(file), []).append(file)
    jobs = []
    for name, images in groups.items():
        check_channel_files(name, images, channels)
        jobs.append(Job(tuple(images), output if named_file else output / f"{name}.nii.gz"))
    return jobs


def _case_name(file: Path) -> str:
    if not file.name.lower().endswith(NIFTI):
        return file.name
    stem, _, number = strip_ending(file).rpartition("_")
    return stem if stem and len(number) == 4 and number.isdigit() else strip_ending(file)


def _siblings(file: Path) -> list[Path]:
    """All channel files of the case that `file` belongs to; the file alone if its name has no channel number."""
    name = _case_name(file)
    if name == strip_ending(file):
        return [file]
    ending = file.name[len(strip_ending(file)) :]
    return sorted(file.parent.glob(f"{name}_[0-9][0-9][0-9][0-9]{ending}"))
