"""Tells how a dataset folder is organised, and finds its cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssmvision.errors import UserError
from ssmvision.recipes.checking.bids import find_bids, looks_like_bids
from ssmvision.recipes.checking.cases import FoundDataset
from ssmvision.recipes.checking.config import LayoutName
from ssmvision.recipes.checking.dicom import find_dicom, looks_like_dicom
from ssmvision.recipes.checking.nnunet import find_datalist, find_nnunet
from ssmvision.recipes.checking.pairs import find_pairs, looks_like_pairs
from ssmvision.recipes.segmentation.datalist import read_json

__all__ = ["find_dataset"]

FINDERS: dict[LayoutName, Callable[[Path], FoundDataset]] = {
    "nnunet": find_nnunet,
    "decathlon": find_datalist,
    "bids": find_bids,
    "pairs": find_pairs,
    "dicom": find_dicom,
}


def find_dataset(data: Path, layout: LayoutName = "auto") -> FoundDataset:
    """The cases of a dataset.

    Args:
        data: folder or datalist file.
        layout: see `CheckConfig`.

    Raises:
        UserError: there is no such path, or it is of no known layout.
    """
    if not data.exists():
        raise UserError(f"{data}: no such file or folder; check the path")
    if data.is_file() and (layout not in ("auto", "decathlon") or data.suffix != ".json"):
        raise UserError(f"{data}: is a file; give a dataset folder, or a datalist ending in .json")
    found = FINDERS[_detect(data) if layout == "auto" else layout](data)
    found.check_ids()
    return found


def _detect(data: Path) -> LayoutName:
    if data.is_file():
        return "decathlon"
    description = data / "dataset.json"
    if description.is_file():
        return "decathlon" if _lists_cases(description) else "nnunet"
    if (data / "imagesTr").is_dir() and any((data / "imagesTr").glob("*_0000.nii*")):
        return "nnunet"
    tests: tuple[tuple[LayoutName, Callable[[Path], bool]], ...] = (
        ("bids", looks_like_bids),
        ("pairs", looks_like_pairs),
        ("dicom", looks_like_dicom),
    )
    for name, looks_like in tests:
        if looks_like(data):
            return name
    raise UserError(
        f"{data}: holds no dataset.json, no sub-* folders, no NIfTI files and no DICOM series; check the path"
    )


def _lists_cases(description: Path) -> bool:
    content: dict[str, Any] = {}
    try:
        content = read_json(description, "restore it")
    except UserError:
        return False  # the layout reports the broken file
    return isinstance(content.get("training"), list) and "file_ending" not in content
