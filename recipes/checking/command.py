"""`ssmvision check`: finds the cases of a dataset, checks them all, and reports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import Progress

from ssmvision.errors import UserError
from ssmvision.recipes.checking.cases import FoundDataset
from ssmvision.recipes.checking.config import CheckConfig
from ssmvision.recipes.checking.dataset import check_dataset
from ssmvision.recipes.checking.findings import Finding, Level
from ssmvision.recipes.checking.layouts import find_dataset
from ssmvision.recipes.checking.volumes import CaseReport, CheckTask, check_case
from ssmvision.recipes.segmentation.writing import check_free, write_bytes
from ssmvision.recipes.workers import Outcome, count_workers, map_cases

__all__ = ["Report", "check", "run"]

LEVELS: tuple[Level, ...] = ("error", "warning", "note")
STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Report:
    """What was checked and found.

    Args:
        dataset: the cases as they lie on disk.
        cases: one report per case.
        findings: all of them, errors first.
    """

    dataset: FoundDataset
    cases: tuple[CaseReport, ...]
    findings: tuple[Finding, ...]

    def count(self, level: Level) -> int:
        """Findings of a level."""
        return sum(finding.level == level for finding in self.findings)

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        cases = [{k: v for k, v in asdict(case).items() if k not in ("findings", "digest")} for case in self.cases]
        return {
            "format": "ssmvision check",
            "version": 1,
            "data": str(self.dataset.root),
            "layout": self.dataset.layout,
            "channels": self.dataset.channels,
            "labels": self.dataset.labels,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [{**asdict(finding), "file": str(finding.file)} for finding in self.findings],
            "cases": cases,
        }


def run(config: CheckConfig) -> Report:
    """Checks a dataset, prints the report and writes it where asked for.

    Raises:
        UserError: the dataset has errors, after they were reported; or it cannot be looked at.
    """
    if config.json is not None:
        check_free(config.json, config.overwrite, [config.data])
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        report = check(config, progress)
    print_report(report, Console())
    if config.json is not None:
        write_bytes(config.json, json.dumps(report.to_json(), indent=1) + "\n")
    if errors := report.count("error"):
        raise UserError(f"{config.data}: {errors} error(s) found, listed above; mend them and check again")
    return report


def check(config: CheckConfig, progress: Progress | None = None) -> Report:
    """Checks a dataset; problems are in the report.

    Raises:
        UserError: there is no dataset at that path, or DICOM cannot be read here.
    """
    found = find_dataset(config.data, config.layout)
    channels = None if found.channels is None else len(found.channels)
    ids = None if found.labels is None else tuple(found.labels.values())
    tasks = [(case.id, CheckTask(case, channels, ids, found.single_channel_files)) for case in found.cases]
    done = _counter(progress, len(tasks))
    outcomes = map_cases(check_case, tasks, count_workers(config.workers, len(tasks)), done)
    reports = [_report(found, index, outcome) for index, outcome in enumerate(outcomes)]
    check_dataset(found, reports)
    findings = [*found.findings.found, *(finding for report in reports for finding in report.findings)]
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Report(found, tuple(reports), tuple(findings))


def _counter(progress: Progress | None, total: int) -> Callable[[str], None]:
    if progress is None:
        return lambda case: None
    bar = progress.add_task("checking cases", total=total)
    return lambda case: progress.advance(bar)


def _report(found: FoundDataset, index: int, outcome: Outcome[CaseReport]) -> CaseReport:
    """The case's report; where its worker died, one that says so."""
    if outcome.value is not None:
        return outcome.value
    case, (problem, _, fix) = found.cases[index], (outcome.problem or "").rpartition("; ")
    return CaseReport(case.id, case.split, (Finding("error", case.images[0], problem, fix, case.id),))


def print_report(report: Report, console: Console) -> None:
    """Findings line by line, errors first, then a summary."""
    dataset = report.dataset
    splits = Counter(case.split for case in report.cases)
    parts = ", ".join(f"{n} {split}" for split, n in splits.items())
    alike: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in report.findings:
        # Errors are all shown; the same warning about every file is not.
        key = str(finding.file) if finding.level == "error" else ""
        alike.setdefault((finding.level, finding.problem, key), []).append(finding)
    for group in alike.values():
        finding, more = group[0], len(group) - 1
        fix = f"; {finding.fix}" if finding.fix else ""
        others = f" (and {more} more file{'s' if more > 1 else ''} alike)" if more else ""
        console.print(f"{finding.level:<8}", style=STYLES[finding.level], end="")
        console.print(f"{finding.file}: {finding.problem}{fix}{others}", markup=False, highlight=False, soft_wrap=True)
    lines: Sequence[str] = (
        f"{dataset.root}: {dataset.layout}, cases: {parts or 'none'}",
        f"channels {', '.join(dataset.channels) if dataset.channels else 'unknown'}; "
        f"labels {dataset.labels or 'unknown'}",
        f"{report.count('error')} error(s), {report.count('warning')} warning(s), {report.count('note')} note(s)",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
