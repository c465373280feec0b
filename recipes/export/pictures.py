"""Real pictures to compare an exported classifier on."""

from __future__ import annotations

from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser
from numpy.typing import NDArray
from torch import Tensor

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import DataConfig
from ssmvision.recipes.classification.data import Scale, open_data
from ssmvision.recipes.classification.picture_files import ENDINGS, read_file
from ssmvision.recipes.classification.run_folder import SETTINGS
from ssmvision.recipes.segmentation.datalist import read_json

__all__ = ["from_folder", "from_run"]

COUNT = 32


def from_run(run: Path, scale: Scale, size: tuple[int, ...]) -> tuple[Tensor, str]:
    """A batch of pictures that a training held out, evenly spread, and what they are.

    Args:
        run: folder of a classification training.
        scale: what is done to a picture first.
        size: height and width wanted.

    Raises:
        UserError: the pictures are not where the training had them, or its settings are damaged.
    """
    path = run / SETTINGS
    values = read_json(path, "give the run folder of `ssmvision classify train`").get("data")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DataConfig, "data")
    try:
        data: DataConfig = parser.instantiate(parser.parse_object({"data": values})).data
    except (ArgumentError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path}: unusable entry data ({error}); restore the saved file") from error
    try:
        sets = open_data(data)
    except UserError as error:
        raise UserError(f"{error}; or pass --pictures FOLDER to compare on others") from error
    named = {"test": sets.test, "validation": sets.validation, "training": sets.training}
    part, pictures = next((name, held) for name, held in named.items() if held is not None and len(held))
    chosen = np.linspace(0, len(pictures) - 1, min(COUNT, len(pictures))).round().astype(int)
    found = [pictures.read(int(i)) for i in chosen]
    return _batch(found, scale, size), f"{len(found)} {part} pictures of the run"


def from_folder(folder: Path, scale: Scale, size: tuple[int, ...]) -> tuple[Tensor, str]:
    """A batch of the first pictures of a folder, by name, and what they are.

    Raises:
        UserError: there are none, or one is damaged.
    """
    files = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(ENDINGS))[:COUNT]
    if not files:
        raise UserError(f"--pictures {folder}: holds no pictures ({', '.join(ENDINGS)}); give a folder that does")
    return _batch([read_file(path) for path in files], scale, size), f"{len(files)} pictures of {folder.name}"


def _batch(pictures: Sequence[NDArray[np.generic]], scale: Scale, size: tuple[int, ...]) -> Tensor:
    wanted = replace(scale, size=(size[0], size[1]))
    fitted = (wanted.fitted(wanted.coloured(picture)) for picture in pictures)
    channels_first = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, -1, 0))) for picture in fitted)
    return torch.stack([wanted.normalised(picture) for picture in channels_first])
