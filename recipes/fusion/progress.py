"""Progress of the slices of one volume."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track

__all__ = ["shown"]


def shown(steps: range, what: str) -> Iterable[int]:
    """The steps; several of them with a bar on standard error that goes away again, if that is a terminal."""
    console = Console(stderr=True)
    if len(steps) <= 1 or not console.is_terminal:
        return steps
    return track(steps, what, console=console, transient=True)
