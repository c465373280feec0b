"""`ssmvision configs`: list, show and copy the configurations that ship with the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ssmvision.cli.config_files import shipped, shipped_names
from ssmvision.errors import UserError

__all__ = ["CopyConfig", "ListConfig", "ShowConfig", "run_copy", "run_list", "run_show"]


@dataclass(frozen=True)
class ListConfig:
    """List the configurations that ship with the package."""


@dataclass(frozen=True)
class ShowConfig:
    """Print a configuration that ships with the package.

    Attributes:
        name: as `ssmvision configs list` prints it.
    """

    name: str


@dataclass(frozen=True)
class CopyConfig:
    """Write an editable copy of a configuration that ships with the package.

    Attributes:
        name: as `ssmvision configs list` prints it.
        dest: file to write, or an existing folder to write it into.
        overwrite: replace an existing file.
    """

    name: str
    dest: Path
    overwrite: bool = False


def run_list(config: ListConfig) -> None:
    """Print one name a line."""
    for name in shipped_names():
        print(name)


def run_show(config: ShowConfig) -> None:
    """Print the file's text as it is.

    Raises:
        UserError: there is no such configuration.
    """
    print(shipped(config.name).read_text(encoding="utf-8"), end="")


def run_copy(config: CopyConfig) -> Path:
    """Write the copy and return its path.

    Raises:
        UserError: there is no such configuration, or the file exists and `overwrite` is not set.
    """
    source = shipped(config.name)
    dest = config.dest / source.name if config.dest.is_dir() else config.dest
    if dest.exists() and not config.overwrite:
        raise UserError(f"{dest} exists; choose another place or pass --overwrite")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        dest.write_bytes(source.read_bytes())
    except OSError as error:
        raise UserError(f"cannot write {dest}: {error.strerror}; choose another place") from error
    print(dest)
    return dest
