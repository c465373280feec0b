"""Runs the fault suite and writes the table of points: `python -m tests.faults.score` (or `make faults`).

Exit status 1 below 90 of 100 points. `--json` also writes the results of each part, and `--recorded` shows those of
another machine (one with a GPU) beside the parts that did not run here; they count only in the second sum.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.faults.table import ELSEWHERE, FAULTS, Part, Result, obtained

HERE = Path(__file__).parent
ENOUGH = 90.0
MARKS = {"passed": "✓", "failed": "✗ failed:", "silently wrong": "✗ silently wrong:", "not run here": "not run here:"}


class Collector:
    """Gathers the results of parts while pytest runs."""

    def __init__(self) -> None:
        self.results: dict[tuple[int, str], Result] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        elsewhere = ELSEWHERE.get(report.nodeid.partition("[")[0])
        if elsewhere is not None:
            self._add(elsewhere, self._result(report, silent=False))
        for name, value in report.user_properties:
            if name == "fault":
                self._add((value["number"], value["part"]), self._result(report, silent=value["silent"]))

    @staticmethod
    def _result(report: pytest.TestReport, *, silent: bool) -> Result | None:
        if report.failed:
            return "silently wrong" if silent else "failed"
        if report.skipped:
            return "not run here"
        return "passed" if report.when == "call" else None

    def _add(self, key: tuple[int, str], result: Result | None) -> None:
        """A part's result is the worst of its tests'."""
        order: list[Result] = ["silently wrong", "failed", "not run here", "passed"]
        if result is not None:
            self.results[key] = min(result, self.results.get(key, "passed"), key=order.index)


def environment() -> str:
    """This machine in a line."""
    import torch

    packages = ("torch", "monai", "nibabel", "SimpleITK", "pydicom")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    return ", ".join(
        [device, f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"


def merge(own: Sequence[Part], recorded: Sequence[Part]) -> list[Part]:
    """Parts with the results of another machine in place of those that did not run here."""
    other = {(part.fault, part.name): part for part in recorded if part.result != "not run here"}
    return [other.get((p.fault, p.name), p) if p.result == "not run here" else p for p in own]


def table(own: Sequence[Part], recorded: Sequence[Part], here: str) -> str:
    """The table in Markdown."""
    both = merge(own, recorded)
    sums = [sum(obtained(fault, parts) for fault in FAULTS) for parts in (own, both)]
    lines = [
        "# Faults: what is injected, and what happens",
        "",
        "Written by `make faults`; [POLICIES.md](POLICIES.md) states what the package does in each case. A fault earns "
        "its points if every part holds, half of them if at least half of the parts hold; a wrong answer that nothing "
        "points out costs 5. A part that did not run has not passed.",
        "",
        f"**{sums[0]:g} of 100 points** on: {here}.",
    ]
    elsewhere = sorted({part.where for part in both if part.where})
    if elsewhere:
        lines += ["", f"**{sums[1]:g} of 100 points** with the parts marked *: recorded on {'; '.join(elsewhere)}."]
    lines += ["", "| # | fault | points | obtained | parts |", "|---|---|---|---|---|"]
    for number, fault in FAULTS.items():
        parts = [part for part in both if part.fault == number]
        told = "<br>".join(f"{MARKS[p.result]} {p.name}{' *' if p.where else ''}" for p in parts) or "nothing ran"
        gained = f"{obtained(number, own):g}"
        if obtained(number, both) != obtained(number, own):
            gained += f" ({obtained(number, both):g} *)"
        lines.append(f"| {number} | {fault.name} | {fault.points} | {gained} | {told} |")
    return "\n".join(lines) + "\n"


def read_parts(path: Path) -> tuple[list[Part], str]:
    """Parts of a file that `--json` wrote, and the machine that they ran on."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [Part(p["fault"], p["name"], p["result"]) for p in content["parts"]], content["environment"]


def inject(files: Sequence[str], quick: bool) -> list[Part]:
    """Runs tests and returns the parts that they prove.

    Args:
        files: of tests; empty: all, with those that stand elsewhere.
        quick: only the sample that `make test` runs.
    """
    if not quick:
        os.environ["SSMVISION_FAULTS"] = "full"
    collector = Collector()
    # An empty expression lifts the ban on GPU tests: those without their device say that they did not run.
    tests = files or [str(HERE), *(str(HERE.parents[1] / test) for test in ELSEWHERE)]
    pytest.main(["-q", "-m", "", "-p", "no:cacheprovider", *tests], plugins=[collector])
    if not files:
        for key in ELSEWHERE.values():
            collector.results.setdefault(key, "not run here")
    return [Part(fault, name, result) for (fault, name), result in sorted(collector.results.items())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the suite; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "FAULTS.md", help="table to write")
    parser.add_argument("--json", type=Path, help="results of the parts to write")
    parser.add_argument("--recorded", type=Path, nargs="*", help="of other machines; without it: recorded_*.json")
    parser.add_argument(
        "--results", type=Path, help="results of `--json` to make the table of, without running anything"
    )
    parser.add_argument("--quick", action="store_true", help="the sample that `make test` runs, not everything")
    parser.add_argument("tests", nargs="*", help="files to run; none: all, and the parts that other tests prove")
    given = parser.parse_args(arguments)
    if given.results is not None:
        own, here = read_parts(given.results)
    else:
        own, here = inject(given.tests, given.quick), environment()
    if given.json is not None:
        parts = [{"fault": p.fault, "name": p.name, "result": p.result} for p in own]
        given.json.write_text(json.dumps({"environment": here, "parts": parts}, indent=1) + "\n", encoding="utf-8")
    files = sorted(HERE.glob("recorded_*.json")) if given.recorded is None else given.recorded
    recorded = [replace(part, where=where) for parts, where in map(read_parts, files) for part in parts]
    text = table(own, recorded, here)
    given.out.write_text(text, encoding="utf-8")
    print(text)
    return 0 if sum(obtained(fault, own) for fault in FAULTS) >= ENOUGH else 1


if __name__ == "__main__":
    raise SystemExit(main())
