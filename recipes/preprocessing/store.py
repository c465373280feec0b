"""Prepared cases on disk: compressed in small cubes and mapped into memory, so that a patch is read without the rest.

An entry is a folder named by what it was made from: the bytes of the case's files, the rules, and this format. It holds
no name of a case, a person or a place. case.json is written last, so that a folder with it is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.preprocessing.case import Prepared
from ssmvision.recipes.preprocessing.locations import Locations
from ssmvision.recipes.segmentation.datalist import Case, read_json
from ssmvision.recipes.segmentation.preprocessing import Preprocessing
from ssmvision.recipes.segmentation.writing import write_bytes

__all__ = ["CaseStore", "entry_key", "is_complete", "write_entry"]

# Raised whenever equal input would give other voxels or other files.
FORMAT = 1
CARD, IMAGE, LABEL, LOCATIONS = "case.json", "image.b2nd", "label.b2nd", "locations.npy"
# Measured on 256 x 256 x 160 noisy voxels, patches of 160 x 128 x 96: 24 ms per patch on one core whether cubes of 32
# or 64 are compressed, 3 ms uncompressed; level 8 of the codec takes 16 times as long to write for no smaller file.
CHUNK, BLOCK, LEVEL = 64, 32, 1
READ_BYTES = 2**22


def entry_key(how: Preprocessing, case: Case, channels: Sequence[str], label_ids: Sequence[int]) -> str:
    """Name of a case's entry; another byte in a file, another rule or another list of labels gives another name.

    Raises:
        UserError: a file cannot be read.
    """
    rules = {"format": FORMAT, "how": how.to_json(), "channels": len(channels), "labels": list(label_ids)}
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    for path in (*case.images, *([] if case.label is None else [case.label])):
        digest.update(_file_digest(path))
    return digest.hexdigest()[:32]


def _file_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path}: could not be read ({error.strerror}); check the file and its permissions") from error
    return digest.digest()


def is_complete(entry: Path) -> bool:
    """Whether a case was written to the end."""
    return (entry / CARD).is_file()


def write_entry(entry: Path, prepared: Prepared) -> None:
    """Writes a case.

    Raises:
        UserError: the disk refused a file; says how many bytes it takes. No part of a file is left.
    """
    buffer = io.BytesIO()
    np.save(buffer, prepared.locations.voxels)
    small = prepared.label.astype(np.int8) if prepared.label.max(initial=0) < 128 else prepared.label
    contents = {IMAGE: _compressed(prepared.image), LABEL: _compressed(small), LOCATIONS: buffer.getvalue()}
    for name, content in contents.items():
        write_bytes(entry / name, content)
    card = {
        "format": FORMAT,
        "shape": prepared.image.shape,
        "spacing_mm": prepared.spacing_mm,
        "location_ends": prepared.locations.ends,
    }
    write_bytes(entry / CARD, json.dumps(card) + "\n")


def _compressed(array: NDArray[Any]) -> bytes:
    import blosc2  # a second to import, and only trainings from disk need it

    chunks, blocks = ([min(n, edge) for n in array.shape[-3:]] for edge in (CHUNK, BLOCK))
    before = [1] * (array.ndim - 3)
    settings = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=LEVEL, nthreads=1)
    array = np.ascontiguousarray(array)
    stored = blosc2.asarray(array, chunks=(*before, *chunks), blocks=(*before, *blocks), cparams=settings)
    return bytes(stored.to_cframe())


@dataclass(frozen=True)
class CaseStore:
    """An entry that is read patch by patch.

    Args:
        entry: its folder.
    """

    entry: Path

    @cached_property
    def card(self) -> dict[str, Any]:
        """The entry's description.

        Raises:
            UserError: it is missing or damaged.
        """
        content = read_json(self.entry / CARD, "remove the folder and preprocess again")
        if content.get("format") != FORMAT:
            raise UserError(
                f"{self.entry / CARD}: format is {content.get('format')!r}, not {FORMAT}; remove the folder"
            )
        return content

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, X, Y, Z)."""
        return tuple(self.card["shape"])

    @property
    def size(self) -> int:
        """Bytes of its files; those that another process has not finished yet do not count."""
        return sum((self.entry / name).stat().st_size for name in (CARD, IMAGE, LABEL, LOCATIONS))

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Voxel edges."""
        return tuple(self.card["spacing_mm"])

    @cached_property
    def locations(self) -> Locations:
        """Where the classes are; their voxels stay on disk until asked for."""
        voxels = np.load(self.entry / LOCATIONS, mmap_mode="r")
        return Locations(voxels, tuple(self.card["location_ends"]))

    def image(self, box: tuple[slice, ...]) -> NDArray[np.float32]:
        """Part (C, x, y, z) of the image."""
        return self._read(IMAGE, (slice(None), *box))

    def label(self, box: tuple[slice, ...]) -> NDArray[np.int16]:
        """Part (x, y, z) of the label map."""
        return self._read(LABEL, box).astype(np.int16)

    def _read(self, name: str, box: tuple[slice, ...]) -> NDArray[Any]:
        import blosc2

        path = self.entry / name
        try:
            # Loader workers are processes of their own; threads would only get in each other's way.
            stored = blosc2.open(str(path), mode="r", mmap_mode="r", dparams=blosc2.DParams(nthreads=1))
            return np.asarray(stored[box])
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}: could not be read ({error}); remove its folder and run again") from error
