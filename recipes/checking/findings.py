"""What a check finds: a level, the file, the problem and the fix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from ssmvision.errors import UserError

__all__ = ["Finding", "Findings", "Level"]

Level = Literal["error", "warning", "note"]
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Args:
        level: "error" has to be mended before training, "warning" should be looked at, "note" states what is assumed.
        file: the file or folder.
        problem: what was found, with the value.
        fix: what to do; empty for a note.
        case: id of the case, or "" where it concerns the dataset.
    """

    level: Level
    file: Path
    problem: str
    fix: str
    case: str = ""


@dataclass
class Findings:
    """A list of findings in the making.

    Args:
        case: id that new findings get.
        found: the list.
    """

    case: str = ""
    found: list[Finding] = field(default_factory=list)

    def error(self, file: Path, problem: str, fix: str, case: str = "") -> None:
        """Adds an error."""
        self.found.append(Finding("error", file, problem, fix, case or self.case))

    def warning(self, file: Path, problem: str, fix: str, case: str = "") -> None:
        """Adds a warning."""
        self.found.append(Finding("warning", file, problem, fix, case or self.case))

    def note(self, file: Path, problem: str) -> None:
        """Adds a note."""
        self.found.append(Finding("note", file, problem, "", self.case))

    def refused(self, error: UserError | str, file: Path) -> None:
        """Adds an error from a message of the form "file: problem; fix"."""
        text = " ".join(str(error).split())
        problem, _, fix = text.removeprefix(f"{file}: ").rpartition("; ")
        self.error(file, problem or fix, fix if problem else "look at the file")

    def attempt(self, file: Path, read: Callable[[], T]) -> T | None:
        """The result of `read`, or None and an error where it refuses the file."""
        try:
            return read()
        except UserError as error:
            self.refused(error, file)
            return None
