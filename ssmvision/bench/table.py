"""Which rows to run, and their figures as a Markdown table, ready for a report, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ssmvision.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Output", "as_json", "chosen", "markdown", "publish", "write_text"]


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A table headed by the first row's keys; every row must have them."""
    head = list(rows[0])
    lines = [head, *([row[name] for name in head] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (head, rule, *lines[1:])
    )


def chosen(wish: str, known: Collection[str]) -> list[str]:
    """Names out of "all" or a comma-separated list.

    Raises:
        UserError: one of them is not known.
    """
    names = list(known) if wish == "all" else [name.strip() for name in wish.split(",")]
    for name in names:
        if name not in known:
            raise UserError(f"--shapes {wish}: there is no shape {name!r}; choose from all, {', '.join(known)}")
    return names


def as_json(machine: str, rows: Sequence[DataclassInstance]) -> str:
    """The machine and the rows, indented."""
    return json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2)


class Output(Protocol):
    """Where a benchmark's figures go, as its settings say."""

    @property
    def json(self) -> bool:
        """Print JSON instead of a table."""

    @property
    def out(self) -> Path | None:
        """Also write the JSON to this file."""


def publish(output: Output, machine: str, rows: Sequence[DataclassInstance], shown: str) -> None:
    """Prints the figures, as JSON or as `shown`, and writes the JSON where it is wanted.

    Raises:
        UserError: it cannot be written.
    """
    text = as_json(machine, rows)
    print(text if output.json else shown)
    if output.out is not None:
        write_text(output.out, text)


def write_text(path: Path, text: str) -> None:
    """Write a report, making its folder.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another place with --out") from error
