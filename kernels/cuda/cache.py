"""Keeps compiled kernels on disk, safely for any number of processes at once and without a lock.

An entry's name is the digest of all that its content depends on, it is written beside its place and moved there, and
its content is checked against its own digest when read. So processes that miss at the same time write the same entry,
and a torn or damaged one is compiled again. A folder that cannot be used costs compile time and one warning.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["cache_folder", "cached", "entry_path", "key_of", "read_entry"]

ENV_VAR = "SSMVISION_CACHE"
# Part of every key and the start of every entry: raise it when the layout or the meaning of a key changes.
MAGIC = b"ssmvision cubin 1\n"
DIGEST_BYTES = 32
logger = logging.getLogger("ssmvision")
_told: set[str] = set()


def cache_folder() -> Path:
    """Where compiled kernels are kept: SSMVISION_CACHE, else the platform's folder for caches.

    Raises:
        RuntimeError: the variable is not set and this user has no home folder.
    """
    stated = os.environ.get(ENV_VAR)
    if stated:
        return Path(stated).expanduser() / "kernels"
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Caches"
    else:
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return parent / "ssmvision" / "kernels"


def key_of(parts: Iterable[str]) -> str:
    """A digest of strings, in which the borders between them count."""
    digest = hashlib.sha256(MAGIC)
    for part in parts:
        content = part.encode()
        digest.update(f"{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def entry_path(name: str, key: str) -> Path:
    """Where the entry is or would be; `name` is for people, `key` alone makes it unique.

    Raises:
        RuntimeError: see `cache_folder`.
    """
    return cache_folder() / f"{name}-{key}.cubin"


def cached(name: str, key: str, build: Callable[[], bytes]) -> tuple[bytes, bool]:
    """The entry's content, built and stored where it is not there.

    Args:
        name: start of the file's name.
        key: see `key_of`.
        build: makes the content; what it raises passes through.

    Returns:
        The content, and whether it came from the disk.
    """
    try:
        path = entry_path(name, key)
    except RuntimeError as error:
        _warn(f"compiled kernels are not kept on disk ({error}); set {ENV_VAR} to a folder")
        return build(), False
    content = read_entry(path)
    if content is not None:
        return content, True
    content = build()
    try:
        _store(path, content)
    except OSError as error:
        _warn(
            f"compiled kernels cannot be kept in {path.parent} ({error.strerror or error}); set {ENV_VAR} to a folder"
        )
    return content, False


def read_entry(path: Path) -> bytes | None:
    """The content of an intact entry, or None where there is none; a damaged or unreadable one is logged."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _warn(f"the compiled kernel {path} cannot be read ({error.strerror or error}); it is compiled again")
        return None
    start = len(MAGIC) + DIGEST_BYTES
    digest, content = raw[len(MAGIC) : start], raw[start:]
    if raw[: len(MAGIC)] != MAGIC or hashlib.sha256(content).digest() != digest:
        logger.warning("the compiled kernel %s is damaged; it is compiled again", path)
        return None
    return content


def _store(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".new-{uuid.uuid4().hex}")
    try:
        # Not by tempfile, whose files only their owner may read: a folder filled by an administrator or while an image
        # is built serves other users.
        with temporary.open("xb") as file:
            file.write(MAGIC + hashlib.sha256(content).digest() + content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _warn(text: str) -> None:
    """Once a process, so that a folder that cannot be used costs one line and not one for every kernel."""
    if text not in _told:
        _told.add(text)
        logger.warning("%s", text)
