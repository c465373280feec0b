"""Finds the cases of a BIDS-like dataset: sub-X[/ses-Y]/anat/sub-X_..._T1w.nii.gz and label maps in derivatives."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from ssmvision.recipes.checking.cases import CheckCase, FoundDataset
from ssmvision.recipes.segmentation.datalist import strip_ending

__all__ = ["find_bids", "looks_like_bids"]

LABEL_SUFFIXES = ("dseg", "mask", "seg", "lesion", "roi")


def looks_like_bids(root: Path) -> bool:
    """Whether there are subjects: folders named sub-X."""
    return any(path.is_dir() for path in root.glob("sub-*"))


def find_bids(root: Path) -> FoundDataset:
    """Cases are subjects, or sessions of subjects; channels are the images that most of them have."""
    found = FoundDataset("BIDS-like", root, root, single_channel_files=True)
    images: dict[str, dict[str, Path]] = {}
    labels: dict[str, list[Path]] = {}
    for path in sorted(root.rglob("sub-*.nii*")):
        case, rest = _entities(path)
        if rest.rpartition("_")[2] in LABEL_SUFFIXES:
            labels.setdefault(case, []).append(path)
        elif "derivatives" in path.relative_to(root).parts:
            found.findings.note(path, "an image among the derivatives is not read")
        elif (first := images.setdefault(case, {}).setdefault(rest, path)) is not path:
            found.findings.error(path, f"case {case!r} has this image twice, also as {first}", "remove one")
    channels = _common(found, images)
    found.channels = tuple(channels) or None
    for case, files in images.items():
        _add(found, case, files, channels, labels.pop(case, []))
    for case, paths in labels.items():
        found.findings.error(paths[0], f"case {case!r} has label maps but no image", "add the image, or remove them")
    if not found.cases:
        found.findings.error(root, "0 cases found", "keep images in sub-X/anat/sub-X_T1w.nii.gz")
    found.labels = _read_names(found, root)
    return found


def _entities(path: Path) -> tuple[str, str]:
    """Case (subject and session) and the rest of a BIDS name: ("sub-1_ses-2", "acq-x_T1w")."""
    parts = strip_ending(path).split("_")
    case = [part for part in parts if part.startswith(("sub-", "ses-"))]
    return "_".join(case), "_".join(part for part in parts if part not in case)


def _common(found: FoundDataset, images: dict[str, dict[str, Path]]) -> list[str]:
    """The images that at least half of the cases have, which are taken as the channels."""
    count = Counter(name for files in images.values() for name in files)
    channels = sorted(name for name, n in count.items() if 2 * n >= len(images))
    if channels:
        found.findings.note(found.root, f"channels are taken to be {', '.join(channels)}")
    return channels


def _add(found: FoundDataset, case: str, files: dict[str, Path], channels: list[str], labels: list[Path]) -> None:
    first = next(iter(files.values()))
    for name in channels:
        if name not in files:
            found.findings.error(
                first.parent, f"case {case!r} has no {name} image, unlike most", "add it or remove the case"
            )
    for name, path in files.items():
        if name not in channels:
            found.findings.warning(path, f"{name} is missing in most cases and is not read", "complete or remove it")
    if len(labels) != 1:
        names = [path.name for path in labels]
        found.findings.error(
            labels[0] if labels else first,
            f"case {case!r} has {len(labels)} label maps{f': {names}' if names else ''}",
            "keep exactly one, named CASE_dseg.nii.gz, in derivatives",
        )
    kept = tuple(files[name] for name in channels if name in files)
    if kept:
        found.cases.append(CheckCase(case, kept, labels[0] if len(labels) == 1 else None))


def _read_names(found: FoundDataset, root: Path) -> dict[str, int] | None:
    """Label names from a dseg.tsv with the columns index and name, where there is one."""
    tables = sorted(root.rglob("*dseg.tsv"))
    if not tables:
        found.findings.note(root, "no dseg.tsv: names of the labels are unknown, ids are only listed")
        return None
    try:
        rows = csv.DictReader(tables[0].read_text(encoding="utf-8").splitlines(), delimiter="\t")
        names = {row["name"]: int(row["index"]) for row in rows}
    except (KeyError, TypeError, ValueError):
        found.findings.error(tables[0], "has no columns index (numbers) and name", "write both, separated by tabs")
        return None
    found.description = tables[0]
    return {"background": 0, **names} if 0 not in names.values() else names
