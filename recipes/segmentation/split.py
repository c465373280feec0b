"""Which cases a training saw and which it held out: kept in its run folder, so that those can be predicted later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import Dataset, read_json
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["SPLIT", "Split", "read_split", "write_split"]

# Case ids are file names that users chose: they stay in the run folder and out of model.json, which is passed on.
SPLIT = "split.json"


@dataclass(frozen=True)
class Split:
    """Case ids of one training, sorted."""

    training: tuple[str, ...]
    validation: tuple[str, ...]


def write_split(folder: Path, dataset: Dataset) -> Path:
    """Writes the ids of `dataset`'s training and validation cases into a run folder; returns the file's path."""
    groups = {"training": dataset.training, "validation": dataset.validation}
    content = {name: sorted(case.id for case in cases) for name, cases in groups.items()}
    write_bytes(folder / SPLIT, json.dumps(content, indent=2) + "\n")
    return folder / SPLIT


def read_split(folder: Path) -> Split:
    """The split that a run folder keeps.

    Raises:
        UserError: there is none, or it is not two lists of case ids.
    """
    path = folder / SPLIT
    content = read_json(path, "give the folder of a training by this version; older ones did not keep their split")
    lists = [content.get(name) for name in ("training", "validation")]
    for name, ids in zip(("training", "validation"), lists, strict=True):
        if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids):
            raise UserError(f"{path}: {name!r} is {ids!r}; restore the file that the training wrote")
    training, validation = (tuple(sorted(ids or ())) for ids in lists)
    return Split(training, validation)
