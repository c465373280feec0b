"""Progress of the slices of one volume."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import track

__all__ = ["shown"]


def shown(steps: range, what: str) -> Iterable[int]:
    """The steps, with a bar on standard error that goes away again where there is more than one."""
    if len(steps) <= 1:
        return steps
    return track(steps, what, console=Console(stderr=True), transient=True)
