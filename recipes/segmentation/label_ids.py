"""What a label map may hold: whole numbers from a list; everything else is told with its voxels and a way out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.nifti import flag

__all__ = ["count_ids", "refuse_picture", "refuse_unknown", "some_of", "suggest_mapping", "whole_numbers"]

# Scale factors in the header leave rounding noise on integers; anything coarser is not a label.
WHOLE = 1e-4
MANY = 8


def whole_numbers(path: Path, data: NDArray[Any]) -> NDArray[np.int64]:
    """Ids as int64; voxels within 1e-4 of a whole number are rounded, with a warning that names them.

    Raises:
        UserError: voxels that are no whole numbers.
    """
    if data.dtype.kind in "iu":
        return np.asarray(data, dtype=np.int64)
    rounded = np.rint(data)
    distance = np.abs(data - rounded)
    off = distance > WHOLE
    if off.any():
        some = ", ".join(f"{value:g}" for value in np.unique(data[off])[:5])
        problem = f"{int(off.sum())} voxel(s) are no whole numbers, such as {some}"
        raise UserError(f"{path}: {problem}; resample label maps by nearest neighbour")
    near = distance > 0
    if near.any():
        some = ", ".join(f"{float(v)!r} as {round(float(v))}" for v in np.unique(data[near])[:5])
        problem = f"{int(near.sum())} voxel(s) are whole numbers but for rounding and are read as such: {some}"
        flag(path, problem, "store label maps as integers")
    return np.asarray(rounded, dtype=np.int64)


def count_ids(ids: NDArray[np.int64]) -> dict[int, int]:
    """Id to number of voxels."""
    found, counts = np.unique(ids, return_counts=True)
    return {int(i): int(n) for i, n in zip(found, counts, strict=True)}


def suggest_mapping(found: Iterable[int], allowed: Sequence[int] | None) -> dict[int, int]:
    """New ids for those that are not allowed: the next unused one in order, 0 where none is left.

    Args:
        found: ids in the map.
        allowed: ids of the list; None: 0, 1, 2, ... without gaps.
    """
    found = set(found)
    if allowed is None:
        positive = sorted(i for i in found if i > 0)
        new = {old: i for i, old in enumerate(positive, 1)} | {i: 0 for i in found if i < 0}
        return {old: i for old, i in sorted(new.items()) if old != i}
    unused = [i for i in sorted(allowed) if i != 0 and i not in found]
    unknown = sorted(found - set(allowed))
    free = iter(unused)
    return {i: next(free, 0) if i > 0 else 0 for i in unknown}


def some_of(counts: Mapping[int, int]) -> str:
    """The first few entries, and how many there are beside."""
    more = f" and {len(counts) - MANY} more" if len(counts) > MANY else ""
    return f"{dict(list(counts.items())[:MANY])}{more}"


def refuse_unknown(path: Path, counts: Mapping[int, int], allowed: Sequence[int]) -> None:
    """Refuses ids that are not on the list.

    Raises:
        UserError: with the ids, their voxels, and a mapping that might be meant.
    """
    unknown = {i: n for i, n in counts.items() if i not in set(allowed)}
    if unknown:
        mapping = some_of(suggest_mapping(counts, allowed))
        raise UserError(
            f"{path}: label ids not in {sorted(allowed)}, with their voxel counts: {some_of(unknown)}; correct the map "
            f"(ssmvision align; suggested mapping: {mapping}), or add the ids to 'labels' of dataset.json"
        )


def refuse_picture(path: Path) -> None:
    """Refuses a PNG, TIFF or BMP that is given as a label map, and says which ids it holds.

    Raises:
        UserError: it is one.
    """
    if path.suffix.lower() not in (".png", ".tif", ".tiff", ".bmp") or not path.is_file():
        return
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            values = np.asarray(picture)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: a picture that cannot be read ({error}); give a label map as .nii.gz") from None
    held = f"{values.dtype} voxels of shape {values.shape}"
    if values.ndim == 2:
        counts = count_ids(values.astype(np.int64))
        mapping = suggest_mapping(counts, None)
        held += f" with the ids and counts {some_of(counts)}"
        held += f", to be renumbered {some_of(mapping)}" if mapping else ""
    raise UserError(f"{path}: a picture has no voxel size; it holds {held}; convert it to .nii.gz with integer ids")
