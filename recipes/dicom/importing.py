"""`ssmvision import`: DICOM series with contours or segmentations become a folder to train on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import require
from ssmvision.recipes.dicom.import_case import CaseTask, ImportedCase, import_case
from ssmvision.recipes.dicom.import_config import ImportConfig
from ssmvision.recipes.dicom.labels import open_labels
from ssmvision.recipes.dicom.private_csv import write_private_csv
from ssmvision.recipes.dicom.scan import FoundSeries, Scan, scan
from ssmvision.recipes.segmentation.writing import check_folder, check_free, write_bytes
from ssmvision.recipes.workers import Outcome, count_workers, map_cases

__all__ = ["run"]

FOLDERS = ("imagesTr", "labelsTr", "imagesTs")


def run(config: ImportConfig) -> Path:
    """Imports every labelled series and returns the path of dataset.json, which is written last.

    Raises:
        UserError: settings are unusable (nothing is written), or some cases failed (the message lists every failure,
            and dataset.json is not written).
    """
    if not config.source.is_dir():
        raise UserError(f"{config.source}: no such folder; give the folder of DICOM series")
    require(config.source, "pydicom", "skimage")
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("looking at files", total=None)
        found = scan(config.source, lambda: progress.advance(bar))
        labelled, others = _sorted_out(config, found)
        _check_settings(config, labelled)
        tasks = _tasks(config, labelled, others)
        _check_output(config, tasks)
        bar = progress.add_task("importing cases", total=len(tasks))
        outcomes = map_cases(
            import_case,
            [(task.case, task) for task in tasks],
            count_workers(config.workers, len(tasks)),
            lambda case: progress.advance(bar),
        )
    if others and config.unlabelled == "skip":
        _say(console, f"left out {len(others)} series without labels")
    _report(console, outcomes)
    _check_outcomes(config, found, outcomes)
    if config.mapping is not None:
        _write_mapping(config.mapping, tasks)
    modality = labelled[0].modality
    path = config.out / "dataset.json"
    write_bytes(path, _description(config, config.channel or modality, len(labelled)))
    _say(console, str(path))
    return path


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _sorted_out(config: ImportConfig, found: Scan) -> tuple[list[FoundSeries], list[FoundSeries]]:
    """Series with labels, and those without."""
    series = [one for one in found.series if config.modality in (None, one.modality)]
    labelled = [one for one in series if one.labels]
    if not labelled:
        kinds = ", ".join(
            f"{n} of {kind or 'unknown'}" for kind, n in Counter(s.modality for s in found.series).items()
        )
        raise UserError(
            f"{config.source}: 0 series with contours or segmentations found; there are {kinds or 'no series at all'}, "
            f"and {len(found.lost)} label file(s) that refer to none of them; `ssmvision check` lists every file"
        )
    return labelled, [one for one in series if not one.labels]


def _check_settings(config: ImportConfig, labelled: Sequence[FoundSeries]) -> None:
    if not config.roi:
        count: Counter[str] = Counter()
        for series in labelled:
            count.update(dict.fromkeys(n for path in series.labels for n in open_labels(path).names.values()).keys())
        listed = ", ".join(f"{name!r} ({n} of {len(labelled)} series)" for name, n in count.most_common())
        raise UserError(f"roi: say what to import, for example --roi.tumour GTV-1; regions found: {listed or 'none'}")
    if len(config.roi) > 254 or "background" in config.roi or not all(map(_patterns, config.roi.values())):
        raise UserError(f"roi: {config.roi} is not possible; give 1 to 254 labels with regions; background has id 0")
    kinds = sorted({series.modality or "unknown" for series in labelled})
    if len(kinds) > 1:
        raise UserError(f"{config.source}: labelled series are of {' and '.join(kinds)}; choose one by --modality")


def _patterns(value: str | list[str]) -> tuple[str, ...]:
    return tuple(part for part in ([value] if isinstance(value, str) else value) if part.strip())


def _tasks(config: ImportConfig, labelled: Sequence[FoundSeries], others: Sequence[FoundSeries]) -> list[CaseTask]:
    chosen = [(series, True) for series in labelled]
    if config.unlabelled == "test":
        chosen += [(series, False) for series in others]
    width = max(3, len(str(len(chosen))))
    roi = {name: _patterns(value) for name, value in config.roi.items()}
    tasks = []
    for number, (series, has_labels) in enumerate(chosen, 1):
        case = f"case_{number:0{width}d}"
        image = config.out / ("imagesTr" if has_labels else "imagesTs") / f"{case}_0000.nii.gz"
        label = config.out / "labelsTr" / f"{case}.nii.gz" if has_labels else None
        tasks.append(
            CaseTask(
                case,
                tuple(series.files),
                tuple(series.labels),
                image,
                label,
                roi,
                config.overlap,
                config.missing,
                config.overwrite,
            )
        )
    return tasks


def _check_output(config: ImportConfig, tasks: Sequence[CaseTask]) -> None:
    check_folder(config.out)
    if config.out.resolve() == config.source.resolve():
        raise UserError(f"{config.out}: is the folder of the DICOM files, which is never written to; choose another")
    description = config.out / "dataset.json"
    files = [path for task in tasks for path in (task.image, task.label) if path is not None]
    for path in (*files, description):
        check_free(path, config.overwrite)
    if config.mapping is not None:
        check_free(config.mapping, config.overwrite)
    there = {path for name in FOLDERS for path in (config.out / name).glob("*")}
    if more := sorted(there - set(files)):
        raise UserError(f"{more[0]}: would be taken for a case of this import; choose an empty output folder")
    # Until all cases are there, nothing may take the folder for a dataset.
    description.unlink(missing_ok=True)


def _report(console: Console, outcomes: Sequence[Outcome[ImportedCase]]) -> None:
    for number, outcome in enumerate(outcomes, 1):
        done = outcome.value
        if done is None:
            _say(console, f"[{number}/{len(outcomes)}] {outcome.case}: failed")
            continue
        size = " x ".join(map(str, done.shape))
        edges = " x ".join(f"{edge:.4g}" for edge in done.spacing_mm)
        volumes = "".join(f", {name} {value:.4g} ml" for name, value in done.millilitres.items())
        _say(console, f"[{number}/{len(outcomes)}] {done.case}: {size} voxels of {edges} mm{volumes}")
        for note in done.notes:
            _say(console, f"    look at {done.case}: {note}")


def _check_outcomes(config: ImportConfig, found: Scan, outcomes: Sequence[Outcome[ImportedCase]]) -> None:
    problems = [str(error) for _, error in found.refused]
    problems += [f"{labels.path}: refers to no series below {config.source}; remove it" for labels in found.lost]
    problems += [f"{outcome.case}: {outcome.problem}" for outcome in outcomes if outcome.problem is not None]
    if problems:
        raise UserError(
            f"import: {len(problems)} problem(s), no dataset.json written; mend them: " + "; ".join(problems)
        )


def _description(config: ImportConfig, channel: str, count: int) -> str:
    content = {
        "channel_names": {"0": channel},
        "labels": {"background": 0} | {name: number for number, name in enumerate(config.roi, 1)},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    return json.dumps(content, indent=2) + "\n"


def _write_mapping(path: Path, tasks: Sequence[CaseTask]) -> None:
    rows = (
        (task.case, task.files[0].parent, task.files[0].name, len(task.files), " ".join(f.name for f in task.labels))
        for task in tasks
    )
    write_private_csv(path, ("case", "folder", "first file", "files", "labels"), rows)
