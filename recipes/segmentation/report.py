"""A segmentation run as one self-contained HTML file: tables, pictures and how they were made, readable offline."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

import ssmvision
from ssmvision.recipes.segmentation.writing import check_free, write_bytes

__all__ = ["Facts", "Highlight", "Picture", "Report", "Row", "Table", "render_report", "write_report"]


@dataclass(frozen=True)
class Highlight:
    """A headline number: the value as it is to be read, and what it is."""

    value: str
    label: str


@dataclass(frozen=True)
class Row:
    """A table row; `emphasis` marks the row the report is about."""

    cells: tuple[str, ...]
    emphasis: bool = False


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        title: heading above it.
        columns: column heads.
        rows: each with as many cells as there are columns.
        text_columns: how many columns from the left hold words, set flush left; the others hold numbers.
        group_by: a rule is drawn where the first `group_by` cells change.
        caption: what to know when reading it.
        folded: hide the rows until clicked.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    text_columns: int = 1
    group_by: int = 0
    caption: str = ""
    folded: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"{self.title}: {len(self.columns)} columns, but a row has {len(row.cells)}: {row.cells}"
                )


@dataclass(frozen=True)
class Picture:
    """A PNG file's bytes, the caption below it and the words a screen reader says instead of it."""

    png: bytes
    caption: str
    alt: str

    def __post_init__(self) -> None:
        if not self.png.startswith(b"\x89PNG\r\n\x1a\n"):
            raise ValueError(f"picture {self.caption!r} is not a PNG: it starts with {self.png[:8]!r}")


@dataclass(frozen=True)
class Facts:
    """Named values; `folded` hides them until clicked."""

    title: str
    items: tuple[tuple[str, str], ...]
    folded: bool = False


@dataclass(frozen=True)
class Report:
    """Everything a report shows, in this order. All text is escaped; none of it is read as HTML.

    Attributes:
        title, summary: what was done, in a line and in a sentence or two.
        notices: limits a reader must know before the numbers.
        highlights: headline numbers, the most important first.
        tables, figures: results.
        command: command line that makes this report again.
        facts: hardware, versions, settings.
    """

    title: str
    summary: str
    notices: tuple[str, ...] = ()
    highlights: tuple[Highlight, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Picture, ...] = ()
    command: str = ""
    facts: tuple[Facts, ...] = ()


def render_report(report: Report) -> str:
    """The report as HTML text: styles and pictures inside, no reference to anything outside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    source = files("ssmvision.recipes.segmentation").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(report=report, version=ssmvision.__version__)


def write_report(path: str | Path, report: Report, overwrite: bool = False) -> Path:
    """Writes a report as one HTML file, completely or not at all.

    Returns:
        The path written.

    Raises:
        UserError: `path` exists and `overwrite` is False.
    """
    path = Path(path)
    check_free(path, overwrite)
    write_bytes(path, render_report(report))
    return path
