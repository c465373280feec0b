"""Finds the cases of an nnU-Net raw folder and of a Decathlon or MONAI datalist, complete or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.checking.cases import CheckCase, FoundDataset, Split, nifti_files
from ssmvision.recipes.segmentation.datalist import channels_in, labels_in, listed_case, read_json, strip_ending

__all__ = ["find_datalist", "find_nnunet"]

LISTS: tuple[Split, ...] = ("training", "validation", "test")


def _described(layout: str, path: Path, root: Path) -> tuple[FoundDataset, dict[str, Any]]:
    """The dataset with what its description says, and the description."""
    found = FoundDataset(layout, root, path)
    content = found.findings.attempt(path, lambda: read_json(path, "write it: channel_names, labels, file_ending"))
    if content is None:
        return found, {}
    found.channels = found.findings.attempt(path, lambda: channels_in(path, content))
    found.labels = found.findings.attempt(path, lambda: labels_in(path, content))
    return found, content


def _check_count(found: FoundDataset, content: dict[str, Any]) -> None:
    stated, count = content.get("numTraining"), sum(case.split == "training" for case in found.cases)
    if stated is not None and stated != count:
        found.findings.error(
            found.description,
            f"numTraining is {stated}, but {count} training cases were found",
            "restore the missing files or correct numTraining",
        )
    if not count:
        found.findings.error(found.root, "0 training cases found", "put images in imagesTr, or list them")


def find_nnunet(root: Path) -> FoundDataset:
    """Cases of imagesTr, labelsTr and imagesTs; every file there that is left over is a finding."""
    found, content = _described("nnU-Net raw", root / "dataset.json", root)
    found.single_channel_files = True
    ending = content.get("file_ending", ".nii.gz")
    if ending not in (".nii.gz", ".nii"):
        found.findings.error(
            found.description, f"file_ending is {ending!r}", "convert the images to NIfTI and set .nii.gz or .nii"
        )
        return found
    labels = _labels(found, root / "labelsTr", ending)
    folders: tuple[tuple[str, Split], ...] = (("imagesTr", "training"), ("imagesTs", "test"))
    for name, split in folders:
        folder = root / name
        if folder.is_dir():
            for case, files in _channels(found, folder, ending).items():
                label = labels.pop(case, None) if split == "training" else None
                found.cases.append(CheckCase(case, files, label, split))
                if split == "training" and label is None:
                    missing = root / "labelsTr" / f"{case}{ending}"
                    found.findings.error(missing, f"case {case!r} has no label map", "add it, or remove the case", case)
        elif split == "training":
            found.findings.error(folder, "no such folder", f"keep CASE_0000{ending} files there")
    for case, path in labels.items():
        fix = "add the image, or remove the label map"
        found.findings.error(path, f"case {case!r} has no image in imagesTr", fix, case)
    _check_count(found, content)
    return found


def _of_ending(found: FoundDataset, folder: Path, ending: str) -> list[Path]:
    files, others = nifti_files(folder)
    for path in (*others, *(p for p in files if not p.name.endswith(ending))):
        found.findings.warning(path, f"does not end in {ending} and is not read", "convert, rename or remove it")
    return [p for p in files if p.name.endswith(ending)]


def _labels(found: FoundDataset, folder: Path, ending: str) -> dict[str, Path]:
    if not folder.is_dir():
        found.findings.error(folder, "no such folder", f"keep CASE{ending} label maps there")
        return {}
    return {path.name[: -len(ending)]: path for path in _of_ending(found, folder, ending)}


def _channels(found: FoundDataset, folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """Image files per case, in the order of their channel numbers."""
    cases: dict[str, dict[str, Path]] = {}
    for path in _of_ending(found, folder, ending):
        stem, _, number = strip_ending(path).rpartition("_")
        if not stem or len(number) != 4 or not number.isdigit():
            found.findings.error(path, "the name has no channel number", f"rename it to CASE_0000{ending}")
        else:
            cases.setdefault(stem, {})[number] = path
    if found.channels is not None:
        expected = [f"{i:04d}" for i in range(len(found.channels))]
        for case, numbers in cases.items():
            if list(numbers) != expected:
                found.findings.error(
                    next(iter(numbers.values())),
                    f"case {case!r} has the channels {list(numbers)}, dataset.json names {expected}",
                    "add or remove files, or correct channel_names",
                    case,
                )
    return {case: tuple(numbers.values()) for case, numbers in cases.items()}


def find_datalist(path: Path) -> FoundDataset:
    """Cases that a Decathlon dataset.json or a MONAI datalist names; files beside them that it does not are findings.

    Args:
        path: the JSON file, or the folder of a dataset.json.
    """
    path = path / "dataset.json" if path.is_dir() else path
    found, content = _described("Decathlon / MONAI datalist", path, path.parent)
    for split in LISTS:
        entries = content.get(split, [])
        if not isinstance(entries, list):
            found.findings.error(path, f"{split!r} is a {type(entries).__name__}", "give a list of entries")
            continue
        for index, entry in enumerate(entries):
            _add(found, split, index, entry)
    if len({case.id for case in found.cases}) < len(found.cases):
        # Lists such as case1/image.nii.gz, case2/image.nii.gz: only the folders tell the cases apart.
        found.cases = [replace(case, id=f"{case.images[0].parent.name}_{case.id}") for case in found.cases]
    _check_count(found, content)
    _check_leftovers(found)
    return found


def _add(found: FoundDataset, split: Split, index: int, entry: Any) -> None:
    try:
        case = listed_case(found.description, split, index, entry)
    except UserError as error:
        found.findings.refused(error, found.description)
        return
    for file in (*case.images, *([case.label] if case.label else [])):
        if not file.is_file():
            found.findings.error(file, f"no such file, but {split}[{index}] names it", "restore it or remove the entry")
    if case.label is None and split != "test":
        found.findings.error(found.description, f"{split}[{index}] ({case.id!r}) names no label", "add its label file")
    label = case.label if case.label is not None and case.label.is_file() else None
    images = tuple(file for file in case.images if file.is_file())
    if images:
        found.cases.append(CheckCase(case.id, images, label, split))


def _check_leftovers(found: FoundDataset) -> None:
    """Files in the folders of the listed ones that no entry names."""
    named = {file.resolve() for case in found.cases for file in (*case.images, *([case.label] if case.label else []))}
    for folder in sorted({file.parent for file in named}):
        for path in nifti_files(folder)[0]:
            if path.resolve() not in named:
                found.findings.warning(path, "lies among the dataset's files but is not listed", "list or remove it")
