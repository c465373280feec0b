"""A program's text and the headers of ours that it includes, read out of the package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath

__all__ = ["Source", "read_source"]

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Source:
    """A translation unit.

    Attributes:
        name: what the compiler calls it in messages.
        text: of the .cu file.
        headers: text of every header of ours that it reaches, by the name in its `#include "..."`.
    """

    name: str
    text: str
    headers: Mapping[str, str]


def read_source(package: str, file: str) -> Source:
    """Read a .cu file of a package with all headers that it includes, directly or not.

    Args:
        package: import name of the package that holds the file.
        file: path below the package, such as "csrc/scan.cu". Every `#include "..."`, also one in a header, is relative
            to that file's folder.

    Raises:
        FileNotFoundError: a file is not in the package; names the file that includes it.
    """
    path = PurePosixPath(file)
    folder = files(package).joinpath(*path.parent.parts)
    source = folder.joinpath(path.name)
    if not source.is_file():
        raise FileNotFoundError(f"package {package} holds no {file}")
    text = source.read_text(encoding="utf-8")
    headers: dict[str, str] = {}
    pending = [(name, path.name) for name in INCLUDE.findall(text)]
    while pending:
        name, includer = pending.pop()
        if name in headers:
            continue
        header = folder.joinpath(*PurePosixPath(name).parts)
        if not header.is_file():
            raise FileNotFoundError(f'{package}: {includer} includes "{name}", which {path.parent}/ does not hold')
        headers[name] = header.read_text(encoding="utf-8")
        pending += [(inner, name) for inner in INCLUDE.findall(headers[name])]
    return Source(path.name, text, dict(sorted(headers.items())))
