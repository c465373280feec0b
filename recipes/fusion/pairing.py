"""Which file is fused with which, and where the result goes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssmvision.errors import UserError
from ssmvision.recipes.dicom.files import is_series
from ssmvision.recipes.fusion import images, volumes

__all__ = ["Pair", "Plan", "is_volume", "plan_pairs"]

ENDINGS = (*volumes.ENDINGS, *images.ENDINGS)
_SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """Two files, or folders of DICOM series, and the file that their fusion goes to."""

    name: str
    a: Path
    b: Path
    out: Path


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        pairs: in the order of their names.
        unmatched: a line for every image without a partner.
    """

    pairs: tuple[Pair, ...]
    unmatched: tuple[str, ...] = ()


def plan_pairs(a: Path, b: Path, out: Path) -> Plan:
    """Two images, or two folders of them paired by name.

    Args:
        a, b: two files, two folders with DICOM series, or two folders whose pictures, volumes or series (as
            sub-folders) have the same names, endings aside.
        out: a file for two images, or a folder, which takes the first image's name and, where that can be written,
            its ending.

    Raises:
        UserError: a path is missing, folders are empty or have no name in common, two files of a folder have one name,
            or a file is asked for as the output of folders.
    """
    batches = [_is_batch(path) for path in (a, b)]
    if batches[0] != batches[1]:
        folder, file = (a, b) if batches[0] else (b, a)
        raise UserError(f"{folder} is a folder of images and {file} is one image; give two of a kind")
    if not batches[0]:
        return Plan((_pair(_name(a), a, b, out),))
    if out.suffix.lower() in (".gz", ".nii", *images.ENDINGS):
        raise UserError(f"{out}: a file cannot take the results of folders; give a folder as output")
    if any(out.resolve() == folder.resolve() for folder in (a, b)):
        raise UserError(f"{out}: is an input folder, which is never written to; choose another output")
    found_a, found_b = _items(a), _items(b)
    names = [name for name in found_a if name in found_b]
    if not names:
        raise UserError(
            f"no name is both in {a} ({_shown(found_a)}) and in {b} ({_shown(found_b)}); pairs are files of the same "
            "name, endings aside: rename them"
        )
    lonely = [f"{path}: no partner in {b}" for name, path in found_a.items() if name not in found_b]
    lonely += [f"{path}: no partner in {a}" for name, path in found_b.items() if name not in found_a]
    pairs = [_pair(name, found_a[name], found_b[name], out / f"{name}{_ending(found_a[name])}") for name in names]
    return Plan(tuple(pairs), tuple(lonely))


def is_volume(path: Path) -> bool:
    """Whether a path is a volume (NIfTI or DICOM) rather than a picture."""
    return path.is_dir() or not path.name.lower().endswith(images.ENDINGS)


def _is_batch(path: Path) -> bool:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    return path.is_dir() and not is_series(path)


def _pair(name: str, a: Path, b: Path, out: Path) -> Pair:
    if is_volume(a) != is_volume(b):
        volume, picture = (a, b) if is_volume(a) else (b, a)
        raise UserError(f"{volume} is a volume and {picture} a picture; give two of a kind")
    folder = out.is_dir() or not out.suffix
    return Pair(name, a, b, out / f"{name}{_ending(a)}" if folder else out)


def _items(folder: Path) -> dict[str, Path]:
    """Images of a folder by name."""
    items: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (is_series(path) if path.is_dir() else path.name.lower().endswith(ENDINGS)):
            continue
        name = _name(path)
        if name in items:
            raise UserError(
                f"{folder}: {items[name].name} and {path.name} have one name; move one of them to another folder"
            )
        items[name] = path
    if not items:
        raise UserError(f"{folder}: 0 images found; it needs files ending in {', '.join(ENDINGS)}, or DICOM series")
    return items


def _name(path: Path) -> str:
    lower = path.name.lower()
    ending = next((ending for ending in (".nii.gz", *ENDINGS, ".dcm", ".ima") if lower.endswith(ending)), "")
    return path.name if path.is_dir() else path.name[: len(path.name) - len(ending)]


def _ending(a: Path) -> str:
    """That of the first image, or one that its values can be written with."""
    if is_volume(a):
        return ".nii" if a.name.lower().endswith(".nii") else ".nii.gz"
    return a.suffix if a.suffix.lower() in (".png", *images.TIFF) else ".png"


def _shown(items: dict[str, Path]) -> str:
    more = f", ... {len(items)} in all" if len(items) > _SHOWN else ""
    return ", ".join(path.name for path in list(items.values())[:_SHOWN]) + more
