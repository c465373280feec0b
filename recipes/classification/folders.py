"""Pictures and volumes in folders, one a class: ROOT/CLASS/..., or ROOT/train/CLASS/... with val and test beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import DataConfig
from ssmvision.recipes.classification.picture_files import ENDINGS, FileReader
from ssmvision.recipes.classification.pictures import Pictures, PictureSets
from ssmvision.recipes.classification.volume_files import (
    NIFTI,
    PATIENT,
    VolumeFile,
    dicom_volumes,
    nifti_volume,
    slice_names,
)
from ssmvision.recipes.dicom.files import visible_files

__all__ = ["read_folder"]

# Names that data sets use for the same part of a folder.
PARTS = {"training": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test",)}
TAKEN = ", ".join((*ENDINGS, *NIFTI, "DICOM"))


def read_folder(config: DataConfig) -> PictureSets:
    """All parts of a folder of class folders.

    Raises:
        UserError: no class folder, one without pictures, a class that training lacks, a volume that cannot be read, or
            a patient (by DICOM's PatientID) in more than one part.
    """
    root = Path(config.root)
    found = {part: next((root / n for n in names if (root / n).is_dir()), None) for part, names in PARTS.items()}
    training = found["training"] or root
    classes = sorted(path.name for path in training.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"{training}: holds no folder; expected one folder of pictures a class")
    split = found["training"] is not None  # else "test" and "val" are names of classes
    others = {part: path for part, path in found.items() if part != "training" and path is not None and split}
    parts = {part: _listed(path, classes, config) for part, path in others.items()}
    first = _listed(training, classes, config)
    empty = [name for i, name in enumerate(classes) if not (first.labels == i).any()]
    if empty:
        raise UserError(f"{training / empty[0]}: no picture in it ({TAKEN}); add some or remove the folder")
    _check_patients({"training": first, **parts}, config)
    return PictureSets(tuple(classes), first, parts.get("validation"), parts.get("test"))


@dataclass
class _Found:
    """Pictures in the order in which they are found.

    Attributes:
        places: see `FileReader`.
        names, volumes, cases, labels: see `Pictures`.
    """

    places: list[Path | tuple[VolumeFile, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    cases: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def add_file(self, path: Path, name: str, case: str, label: int) -> None:
        """A picture."""
        self.places.append(path)
        self._add([name], name, case, label)

    def add_volume(self, volume: VolumeFile, name: str, case: str, label: int) -> None:
        """The chosen slices of a volume."""
        self.places += [(volume, place) for place in range(len(volume.chosen))]
        self._add(slice_names(name, volume), name, volume.case or case, label)

    def _add(self, names: Sequence[str], volume: str, case: str, label: int) -> None:
        self.names += names
        self.volumes += [volume] * len(names)
        self.cases += [case] * len(names)
        self.labels += [label] * len(names)


def _listed(part: Path, classes: Sequence[str], config: DataConfig) -> Pictures:
    unknown = [p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in classes]
    if unknown:
        raise UserError(f"{part / unknown[0]}: no class of that name in the training part ({', '.join(classes)})")
    found = _Found()
    for label, name in enumerate(classes):
        if (part / name).is_dir():
            _list_class(found, part / name, label, config)
    if not found.places:
        raise UserError(f"{part}: no picture in its folders ({TAKEN}); add some or remove it")
    sliced = len(set(found.volumes)) < len(found.volumes)
    told = len(set(found.cases)) < len(found.cases) or any(case.startswith(PATIENT) for case in found.cases)
    return Pictures(
        FileReader(tuple(found.places)),
        np.asarray(found.labels, dtype=np.int64),
        found.names,
        found.volumes if sliced else None,
        found.cases if told else None,
    )


def _list_class(found: _Found, folder: Path, label: int, config: DataConfig) -> None:
    root, rest = Path(config.root), False
    for path in visible_files(folder, deep=True):
        name = path.relative_to(root).as_posix()
        if path.name.lower().endswith(NIFTI):
            found.add_volume(nifti_volume(path, config), name, _case(path, folder, name), label)
        elif path.name.lower().endswith(ENDINGS):
            case = _case(path, folder, name) if config.picture_cases == "folder" else name
            found.add_file(path, name, case, label)
        else:
            rest = True
    series = Counter[str]()
    for volume in dicom_volumes(folder, config) if rest else ():
        name = volume.path.relative_to(root).as_posix()
        series[name] += 1
        name += f" series {series[name]}" if series[name] > 1 else ""
        found.add_volume(volume, name, _case(volume.path, folder, name), label)


def _case(path: Path, folder: Path, name: str) -> str:
    """The folder of its own that a file of a class lies in, which may be in other classes, too; else the file."""
    inside = path.relative_to(folder).parts
    return inside[0] if len(inside) > 1 or (inside and path.is_dir()) else name


def _check_patients(parts: dict[str, Pictures], config: DataConfig) -> None:
    seen: dict[str, str] = {}
    for part, pictures in parts.items():
        for case, name in zip(pictures.cases or (), pictures.names, strict=False):
            if case.startswith(PATIENT) and seen.setdefault(case, part) != part:
                raise UserError(
                    f"{config.root}: the patient of {name} (by PatientID) is in the {seen[case]} part, too; put all of "
                    "a patient into one part"
                )
