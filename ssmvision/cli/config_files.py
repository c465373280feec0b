"""Finds a configuration by name: a file on disk, else one that ships with the package."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from ssmvision.errors import UserError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["locate", "shipped", "shipped_names"]

PACKAGE = "ssmvision.configs"
SUFFIX = ".yaml"


def shipped_names() -> list[str]:
    """Names of the shipped configurations, such as "segmentation/demo.yaml", sorted."""
    return sorted(_walk(files(PACKAGE), ""))


def _walk(folder: Traversable, prefix: str) -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(SUFFIX):
            yield f"{prefix}{entry.name}"


def shipped(name: str) -> Traversable:
    """A shipped configuration; the suffix may be left out.

    Raises:
        UserError: the package ships none of that name.
    """
    names = shipped_names()
    known = next((candidate for candidate in (name, name + SUFFIX) if candidate in names), None)
    if known is None:
        close = get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        listed = f"{hint}available: {', '.join(names)}"
        raise UserError(f"{name}: no such file, and no configuration of that name ships with ssmvision; {listed}")
    return files(PACKAGE).joinpath(known)


def locate(name: str) -> Traversable:
    """The configuration that `--config NAME` means: a file of that path, else a shipped one.

    Raises:
        UserError: neither exists, or the path is a folder.
    """
    path = Path(name)
    if path.is_dir():
        raise UserError(f"{name} is a folder; --config takes a YAML file or a name from `ssmvision configs list`")
    return path if path.is_file() else shipped(name)
