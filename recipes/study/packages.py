"""Finds data files inside installed packages, without importing these packages."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from ssmvision.errors import UserError

__all__ = ["check_digest", "package_folder"]


def package_folder(package: str, install: str, *parts: str) -> Path:
    """A folder inside an installed package.

    Args:
        package: its import name.
        install: what to tell pip to install, with the version that has the files.
        parts: of the folder's path inside the package.

    Raises:
        UserError: the package or the folder is missing.
    """
    spec = importlib.util.find_spec(package)
    advice = f"pip install --no-deps {install}"
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the data are read from the package {package}, which is not installed: {advice}")
    folder = Path(spec.submodule_search_locations[0], *parts)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder in the installed {package}; install the version that has it: {advice}"
        )
    return folder


def check_digest(paths: list[Path], expected: str, install: str) -> None:
    """Checks that files are those that the study's figures were taken with.

    Args:
        paths: the files, in a fixed order.
        expected: hexadecimal SHA-256 of all their contents in turn.
        install: see `package_folder`.

    Raises:
        UserError: it differs.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    if digest.hexdigest() != expected:
        raise UserError(
            f"{paths[0].parent}: SHA-256 of the {len(paths)} file(s) is {digest.hexdigest()}, expected {expected}; "
            f"reinstall them: pip install --force-reinstall --no-deps {install}"
        )
