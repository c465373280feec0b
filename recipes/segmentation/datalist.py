"""Lists the cases of an nnU-Net raw folder, a Decathlon folder or a MONAI datalist JSON; opens no image."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from ssmvision.errors import UserError

__all__ = [
    "Case",
    "Dataset",
    "channels_in",
    "hold_out",
    "labels_in",
    "listed_case",
    "read_dataset",
    "read_dataset_labels",
    "read_json",
    "strip_ending",
]

ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Case:
    """One subject: its image files (one per channel, or one holding all of them) and its label map if there is one."""

    id: str
    images: tuple[Path, ...]
    label: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """Cases with the names of channels and labels; `labels` maps name to id, ids are 0 (background) to K - 1."""

    path: Path
    channels: tuple[str, ...]
    labels: dict[str, int]
    training: tuple[Case, ...]
    validation: tuple[Case, ...] = ()
    test: tuple[Case, ...] = ()


def strip_ending(path: Path) -> str:
    """File name without .nii or .nii.gz."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def read_json(path: Path, if_missing: str) -> dict[str, Any]:
    """A JSON object from `path`.

    Args:
        path: the file.
        if_missing: what to do where there is none, for the message.

    Raises:
        UserError: the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {if_missing}") from None
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror}); check its permissions") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); correct the file") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {type(content).__name__}; it must be an object, {{...}}")
    return content


def read_dataset(root: Path | str) -> Dataset:
    """Reads a dataset's description and finds its files.

    Args:
        root: folder with dataset.json (nnU-Net raw or Decathlon), or a datalist JSON whose paths are relative to it.

    Raises:
        UserError: the description contradicts itself or the files on disk; names the file, the value and the fix.
    """
    root = Path(root)
    path = root / "dataset.json" if root.is_dir() else root
    content = read_json(path, "give an nnU-Net raw folder with a dataset.json, or a datalist JSON")
    channels, labels = channels_in(path, content), labels_in(path, content)
    if isinstance(content.get("training"), list) and "file_ending" not in content:
        training, validation, test = (_listed(path, content, key) for key in ("training", "validation", "test"))
        if len({c.id for c in (*training, *validation)}) < len(training) + len(validation):
            # Lists such as case1/image.nii.gz, case2/image.nii.gz: only the folders tell the cases apart.
            training, validation = (tuple(map(_named_by_path, cases)) for cases in (training, validation))
        dataset = Dataset(path, channels, labels, training, validation, test)
    else:
        dataset = _nnunet(path, content, channels, labels)
    _check(dataset, content)
    return dataset


def read_dataset_labels(near: Path) -> dict[str, int] | None:
    """Label names from the dataset.json in a folder, or in the folder above `near`; None if there is none."""
    for folder in (near, near.parent):
        path = folder / "dataset.json"
        if path.is_file():
            return labels_in(path, read_json(path, "restore it"))
    return None


def channels_in(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Names of the channels that a dataset.json lists.

    Raises:
        UserError: there are none, or their numbers have gaps.
    """
    found = content.get("channel_names", content.get("modality"))
    if isinstance(found, list) and found:
        return tuple(str(name) for name in found)
    if isinstance(found, dict) and found:
        expected = [str(i) for i in range(len(found))]
        if sorted(found) != sorted(expected):
            raise UserError(f"{path}: channel_names has the keys {sorted(found)}; number them {expected}")
        return tuple(str(found[key]) for key in expected)
    raise UserError(f'{path}: channel_names is {found!r}; give for example {{"0": "MRI"}}')


def labels_in(path: Path, content: dict[str, Any]) -> dict[str, int]:
    """Name to id of the labels that a dataset.json lists, in the order of the ids.

    Raises:
        UserError: there are fewer than two, ids with gaps, regions, or an "ignore" label.
    """
    found = content.get("labels")
    if not isinstance(found, dict) or len(found) < 2:
        raise UserError(f'{path}: labels is {found!r}; give for example {{"background": 0, "liver": 1}}')
    if all(key.isdigit() and isinstance(value, str) for key, value in found.items()):
        if len(set(found.values())) < len(found):
            raise UserError(f"{path}: labels {found} names a class twice; give every id its own name")
        found = {name: int(key) for key, name in found.items()}
    if "ignore" in found:
        raise UserError(f"{path}: label 'ignore' ({found['ignore']!r}) is not supported; give those voxels another id")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{path}: label {name!r} is {value!r}; give one integer id per label (no region lists)")
    ids = sorted(found.values())
    if ids != list(range(len(found))):
        mapping = {old: new for new, old in enumerate(ids) if old != new}
        raise UserError(
            f"{path}: label ids are {ids}; number them 0 (background) to {len(found) - 1} "
            f"(suggested mapping: {mapping})"
        )
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _listed(path: Path, content: dict[str, Any], key: str) -> tuple[Case, ...]:
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise UserError(
            f'{path}: \'{key}\' is a {type(entries).__name__}; give a list of {{"image": ..., "label": ...}}'
        )
    return tuple(listed_case(path, key, i, entry) for i, entry in enumerate(entries))


def listed_case(path: Path, key: str, index: int, entry: Any) -> Case:
    """The case that an entry of a datalist names: `content[key][index]` of the file `path`.

    Raises:
        UserError: the entry names no image, or a label that is no file name.
    """
    entry = {"image": entry} if isinstance(entry, str) else entry
    images = entry.get("image") if isinstance(entry, dict) else None
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(i, str) for i in images):
        raise UserError(f"{path}: {key}[{index}] has the image {images!r}; give a file name or a list of them")
    label = entry.get("label")
    if label is not None and not isinstance(label, str):
        raise UserError(f"{path}: {key}[{index}] has the label {label!r}; give one file name")
    files = tuple(path.parent / name for name in images)
    name = strip_ending(files[0])
    name = name.removesuffix("_0000") if len(files) > 1 else name
    return Case(name, files, path.parent / label if label is not None else None)


def _named_by_path(case: Case) -> Case:
    """The case with its folder's name before its own."""
    return replace(case, id=f"{case.images[0].parent.name}_{case.id}")


def _nnunet(path: Path, content: dict[str, Any], channels: tuple[str, ...], labels: dict[str, int]) -> Dataset:
    ending = content.get("file_ending", ".nii.gz")
    if ending not in ENDINGS:
        raise UserError(
            f"{path}: file_ending is {ending!r}; convert the images to NIfTI and set one of {', '.join(ENDINGS)}"
        )
    training = _folder_cases(path.parent / "imagesTr", ending, len(channels), path.parent / "labelsTr")
    test = path.parent / "imagesTs"
    return Dataset(
        path, channels, labels, training, (), _folder_cases(test, ending, len(channels)) if test.is_dir() else ()
    )


def _folder_cases(folder: Path, ending: str, channels: int, labels: Path | None = None) -> tuple[Case, ...]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; nnU-Net raw data keeps CASE_0000{ending} files there")
    names: dict[str, list[str]] = {}
    for file in sorted(folder.glob(f"*{ending}")):
        stem, _, number = strip_ending(file).rpartition("_")
        if not stem or len(number) != 4 or not number.isdigit():
            raise UserError(f"{file}: the name has no channel number; rename it to CASE_0000{ending}")
        names.setdefault(stem, []).append(number)
    expected = [f"{i:04d}" for i in range(channels)]
    for name, found in names.items():
        if found != expected:
            raise UserError(
                f"{folder}: case {name!r} has the channels {found}, but dataset.json names {channels} channel(s) "
                f"({expected}); add or remove files, or correct channel_names"
            )
    cases = (Case(n, tuple(folder / f"{n}_{e}{ending}" for e in expected)) for n in names)
    return tuple(replace(c, label=labels / f"{c.id}{ending}") if labels else c for c in cases)


def _check(dataset: Dataset, content: dict[str, Any]) -> None:
    stated = content.get("numTraining")
    if stated is not None and stated != len(dataset.training):
        raise UserError(
            f"{dataset.path}: numTraining is {stated}, but {len(dataset.training)} training cases were found; "
            "restore the missing files or correct numTraining"
        )
    if not dataset.training:
        raise UserError(f"{dataset.path}: 0 training cases found; put images in imagesTr or list them under 'training'")
    repeated = [i for i, n in Counter(c.id for c in (*dataset.training, *dataset.validation)).items() if n > 1]
    if repeated:
        raise UserError(
            f"{dataset.path}: case id(s) {repeated} occur more than once; give every case its own file name"
        )
    for case in (*dataset.training, *dataset.validation):
        if case.label is None:
            raise UserError(f"{dataset.path}: case {case.id!r} has label None; add its label file")
        _check_files(dataset, case, (*case.images, case.label))
    for case in dataset.test:
        _check_files(dataset, case, case.images)


def _check_files(dataset: Dataset, case: Case, files: tuple[Path, ...]) -> None:
    if len(case.images) not in (1, len(dataset.channels)):
        raise UserError(
            f"{dataset.path}: case {case.id!r} has {len(case.images)} image files, but there are "
            f"{len(dataset.channels)} channels {list(dataset.channels)}; list one file per channel"
        )
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file (case {case.id!r} of {dataset.path}); restore it or remove the case")


def hold_out(dataset: Dataset, cases: tuple[str, ...], fraction: float, seed: int) -> Dataset:
    """The same dataset with validation cases moved out of training.

    Args:
        dataset: as read.
        cases: ids to hold out; empty: `fraction` of the training cases (rounded, at least one when above 0), drawn by
            `seed`, unless the dataset lists validation cases itself.
        fraction: see `cases`.
        seed: see `cases`.

    Raises:
        UserError: an id is unknown, the fraction is not in [0, 1), or no training case would be left.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"data.validation_fraction: {fraction} is not in [0, 1); give for example 0.2")
    ids = [case.id for case in dataset.training]
    unknown = sorted(set(cases) - set(ids))
    if unknown:
        raise UserError(f"data.validation_cases: {unknown} not among the training cases of {dataset.path}: {ids}")
    chosen = set(cases)
    if not cases and not dataset.validation and fraction > 0:
        chosen = set(Random(seed).sample(sorted(ids), max(1, round(fraction * len(ids)))))
    training = tuple(c for c in dataset.training if c.id not in chosen)
    if not training:
        raise UserError(
            f"{dataset.path}: {len(ids)} training case(s), all held out for validation; "
            "set data.validation_fraction to 0 or add cases"
        )
    held_out = tuple(c for c in dataset.training if c.id in chosen)
    return replace(dataset, training=training, validation=(*dataset.validation, *held_out))
