"""Finds image and label pairs in plain folders that nothing describes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ssmvision.recipes.checking.cases import CheckCase, FoundDataset, nifti_files
from ssmvision.recipes.segmentation.datalist import strip_ending

__all__ = ["find_pairs", "looks_like_pairs"]

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "volumes", "imagestr", "scans", "data")
LABEL_FOLDERS = ("labels", "label", "masks", "mask", "segmentations", "segmentation", "seg", "segs", "labelstr", "gt")
LABEL_WORDS = ("seg", "mask", "label", "labels", "segmentation", "gt", "groundtruth", "roi", "dseg")


def looks_like_pairs(root: Path) -> bool:
    """Whether a folder holds NIfTI files, itself or one folder further down."""
    folders = [root, *(path for path in root.iterdir() if path.is_dir())]
    return any(nifti_files(folder)[0] for folder in folders)


def find_pairs(root: Path) -> FoundDataset:
    """Three forms: two folders (images/, labels/), one folder (A.nii.gz, A_seg.nii.gz), or one folder per case."""
    found = FoundDataset("pairs of NIfTI files", root, root)
    found.findings.note(root, "no dataset.json: names of channels and labels are unknown, ids are only listed")
    folders = {path.name.casefold(): path for path in sorted(root.iterdir()) if path.is_dir()}
    images, labels = ([folders[n] for n in names if n in folders] for names in (IMAGE_FOLDERS, LABEL_FOLDERS))
    if images and labels:
        _two_folders(found, images[0], labels[0])
    elif nifti_files(root)[0]:
        _one_folder(found, root)
    else:
        for folder in folders.values():
            _case_folder(found, folder)
    if not found.cases:
        fix = "name them A.nii.gz and A_seg.nii.gz, or use the folders images and labels"
        found.findings.error(root, "0 image and label pairs found", fix)
    return found


def label_stem(stem: str) -> str | None:
    """The case that a label file's stem names, "" for a bare word such as "seg"; None of an image's stem."""
    if stem.casefold() in LABEL_WORDS:
        return ""
    for mark in ("_", "-", "."):
        head, found, word = stem.rpartition(mark)
        if found and word.casefold() in LABEL_WORDS:
            return head
    return None


def _by_case(found: FoundDataset, maps: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    kept: dict[str, Path] = {}
    for case, path in maps:
        first = kept.setdefault(case, path)
        if first is not path:
            found.findings.error(
                path, f"case {case!r} has another label map, {first.name}", "keep one, merged if need be"
            )
    return kept


def _two_folders(found: FoundDataset, images: Path, labels: Path) -> None:
    found.findings.note(images, f"images are read from {images.name}/, label maps from {labels.name}/")
    maps = _by_case(
        found, ((label_stem(strip_ending(path)) or strip_ending(path), path) for path in nifti_files(labels)[0])
    )
    for path in nifti_files(images)[0]:
        case = strip_ending(path)
        _add(found, case, (path,), maps.pop(case, None) or maps.pop(case.removesuffix("_0000"), None))
    for case, path in maps.items():
        found.findings.error(path, f"case {case!r} has no image in {images}", "add the image, or remove the label map")
    for folder in (images, labels):
        _report_others(found, folder)


def _one_folder(found: FoundDataset, root: Path) -> None:
    files = nifti_files(root)[0]
    maps = _by_case(found, ((stem, path) for path in files if (stem := label_stem(strip_ending(path))) is not None))
    for path in files:
        if label_stem(strip_ending(path)) is None:
            _add(found, strip_ending(path), (path,), maps.pop(strip_ending(path), None))
    for case, path in maps.items():
        found.findings.error(path, f"no image {case or 'of any name'} beside it", "add the image, or remove it")
    _report_others(found, root)


def _case_folder(found: FoundDataset, folder: Path) -> None:
    files = nifti_files(folder)[0]
    maps = [path for path in files if label_stem(strip_ending(path)) is not None]
    images = tuple(path for path in files if path not in maps)
    if len(maps) > 1:
        found.findings.error(folder, f"{len(maps)} label maps: {[p.name for p in maps]}", "keep one, merged if need be")
    if images:
        _add(found, folder.name, images, maps[0] if maps else None)
    else:
        found.findings.warning(folder, "holds no image (NIfTI file) and is not read", "add its files or remove it")
    _report_others(found, folder)


def _add(found: FoundDataset, case: str, images: tuple[Path, ...], label: Path | None) -> None:
    found.cases.append(CheckCase(case, images, label))
    if label is None:
        found.findings.error(images[0], f"case {case!r} has no label map", "add it, or remove the image")


def _report_others(found: FoundDataset, folder: Path) -> None:
    for path in nifti_files(folder)[1]:
        found.findings.warning(path, "is no NIfTI file and is not read", "convert or remove it")
