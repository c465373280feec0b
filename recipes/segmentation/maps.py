"""What a prediction fills block by block: labels, probabilities, uncertainty or logits, on the stored grid."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.streaming import Block

__all__ = ["Maps", "allocate", "is_mapped", "label_dtype", "normalised_entropy"]

# Below the logit of the background by so much, a class has no share of the softmax in float32.
CERTAIN = -1e4
# Larger arrays live in an unnamed file, whose pages the system may write out when memory is short.
MAPPED_FROM_BYTES = 2**28


@dataclass(frozen=True)
class Maps:
    """Arrays on one grid; None: not wanted.

    Args:
        labels: (X, Y, Z) smallest unsigned integers, the class with the largest logit.
        uncertainty: (X, Y, Z) float32, see `normalised_entropy`.
        probabilities: (K, X, Y, Z) float32, softmax of the logits.
        logits: (K, X, Y, Z) float32.
    """

    labels: NDArray[np.unsignedinteger[Any]] | None = None
    uncertainty: NDArray[np.float32] | None = None
    probabilities: NDArray[np.float32] | None = None
    logits: NDArray[np.float32] | None = None

    def through(self, view: Callable[[NDArray[Any]], NDArray[Any]]) -> Maps:
        """The same memory with its axes as `view` has them."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return Maps(**{name: None if array is None else view(array) for name, array in arrays.items()})

    def clear(self) -> None:
        """Makes everything background without doubt: what is cut off before prediction stays so."""
        for values in (self.labels, self.uncertainty, self.probabilities, self.logits):
            if values is not None:
                values[...] = 0
        if self.probabilities is not None:
            self.probabilities[0] = 1
        if self.logits is not None:
            self.logits[1:] = CERTAIN

    def put(self, block: Block) -> None:
        """Fills in a block.

        Raises:
            RuntimeError: the network gave values that are not finite, which no label may be made of.
        """
        logits, box = block.logits, block.box
        if not bool(torch.isfinite(logits).all()):
            raise RuntimeError(
                f"the network's output is not finite around voxel {block.start}; check the image's intensities, or "
                "run the network in float32"
            )
        if self.labels is not None:
            self.labels[box] = logits.argmax(0).to(torch.int32).cpu().numpy()
        if self.uncertainty is not None:
            self.uncertainty[box] = normalised_entropy(logits).cpu().numpy()
        if self.probabilities is not None:
            self.probabilities[(slice(None), *box)] = logits.softmax(0).cpu().numpy()
        if self.logits is not None:
            self.logits[(slice(None), *box)] = logits.cpu().numpy()

    def mask(self, masked: NDArray[np.bool_]) -> None:
        """Fills in voxels (X, Y, Z) that hold no measurement: background, with every class as likely as the others."""
        if self.labels is not None:
            self.labels[masked] = 0
        if self.uncertainty is not None:
            self.uncertainty[masked] = 1
        if self.probabilities is not None:
            for part in self.probabilities:  # one class at a time: an index of all would copy it
                part[masked] = 1 / len(self.probabilities)


def normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax over axis 0, divided by its largest value log K: 0 for certain, 1 for no idea."""
    if len(logits) == 1:
        return torch.zeros_like(logits[0])
    logs = logits.log_softmax(0)
    return (-(logs.exp() * logs).sum(0) / math.log(len(logits))).clamp(0, 1)


def label_dtype(classes: int) -> np.dtype[Any]:
    """Smallest unsigned integer for ids below `classes`."""
    return np.min_scalar_type(classes - 1)


def is_mapped(size: int) -> bool:
    """Whether `allocate` puts an array of so many bytes into a file."""
    return size >= MAPPED_FROM_BYTES


def allocate(shape: Sequence[int], dtype: DTypeLike, folder: Path | None = None) -> NDArray[Any]:
    """Zeros in memory, or, where large, in an unnamed file that vanishes with the array.

    Args:
        shape, dtype: of the array.
        folder: for the file; made if missing. None: always in memory.

    Raises:
        UserError: the disk has no room, told before anything is computed.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if folder is None or not is_mapped(size):
        return np.zeros(tuple(shape), dtype)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # Blocks are reserved now: a full disk under a mapped page would otherwise kill the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype=dtype, mode="r+", shape=tuple(shape))
    except OSError as error:
        raise UserError(
            f"{folder}: {size} bytes for a temporary array cannot be had ({error}); free space or choose another folder"
        ) from error
