"""Checks that need all cases at once: copies, numbers of channels, ids that never occur, orientations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from ssmvision.recipes.checking.cases import CheckCase, FoundDataset
from ssmvision.recipes.checking.volumes import CaseReport

__all__ = ["check_dataset"]


def check_dataset(found: FoundDataset, reports: Sequence[CaseReport]) -> None:
    """Adds findings about the dataset as a whole to `found.findings`.

    Args:
        found: the dataset.
        reports: one per case, in the order of `found.cases`.
    """
    _check_copies(found, reports)
    if found.channels is None:
        _check_channels(found, reports)
    _check_labels(found, reports)
    for attribute, name in (("orientation", "stored orientations"), ("spacing", "voxel sizes")):
        _note_mixture(found, [_text(report, attribute) for report in reports if report.shape], name)


def _check_copies(found: FoundDataset, reports: Sequence[CaseReport]) -> None:
    """Cases with equal images: counted twice, or trained on and tested on."""
    copies: defaultdict[str, list[CheckCase]] = defaultdict(list)
    for case, report in zip(found.cases, reports, strict=True):
        if report.digest:
            copies[report.digest].append(case)
    for group in copies.values():
        for other in group[1:]:
            first = group[0]
            across = f" ({first.split} and {other.split})" if first.split != other.split else ""
            found.findings.error(
                other.images[0],
                f"case {other.id!r} has the same voxels as case {first.id!r}{across}",
                "remove one: a copy among training and test cases falsifies the scores",
            )


def _check_channels(found: FoundDataset, reports: Sequence[CaseReport]) -> None:
    """Nothing lists the channels: the most common number counts."""
    counts = Counter(report.channels for report in reports if report.channels)
    if not counts:
        return
    usual, cases = counts.most_common(1)[0]
    if len(counts) == 1:
        found.findings.note(found.root, f"every case has {usual} channel(s)")
    for case, report in zip(found.cases, reports, strict=True):
        if report.channels not in (0, usual):
            found.findings.error(
                case.images[0],
                f"case {case.id!r} has {report.channels} channel(s), {cases} of {len(reports)} cases have {usual}",
                "complete the case or remove it",
            )


def _check_labels(found: FoundDataset, reports: Sequence[CaseReport]) -> None:
    seen: Counter[int] = Counter()
    for report in reports:
        seen.update(report.labels.keys())
    if not seen:
        return
    if found.labels is None:
        ids = sorted(seen)
        found.findings.note(found.root, f"label ids found: {ids}; nothing says what they are")
        if ids != list(range(len(ids))):
            mapping = {old: new for new, old in enumerate(ids)}
            found.findings.warning(found.root, f"label ids have gaps: {ids}", f"renumber them for training: {mapping}")
        return
    for name, number in found.labels.items():
        if number and number not in seen:
            found.findings.warning(
                found.description, f"label {name!r} ({number}) occurs in no case", "remove it, or check the label maps"
            )


def _text(report: CaseReport, attribute: str) -> str:
    if attribute == "orientation":
        return report.orientation
    return " x ".join(f"{edge:.2f}" for edge in report.spacing_mm)


def _note_mixture(found: FoundDataset, values: Sequence[str], name: str) -> None:
    counts = Counter(values).most_common()
    if len(counts) > 1:
        some = ", ".join(f"{value} ({n})" for value, n in counts[:5])
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        found.findings.note(found.root, f"{len(counts)} {name}: {some}{more}")
