"""Checkpoints that survive an interruption: written whole, checked by digest, the previous one kept."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.writing import write_atomic, write_bytes
from ssmvision.recipes.training.files import DIGESTS, LAST, PREVIOUS

__all__ = ["DIGESTS", "LAST", "PREVIOUS", "SafeCheckpointIO"]

# Two belong to files. A run that is killed between recording a digest and renaming its file leaves one more.
KEPT_DIGESTS = 16


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _known(target: Path) -> list[str]:
    """Digests on record beside `target`."""
    path = target.with_name(DIGESTS)
    return path.read_text().split() if path.is_file() else []


def _record(target: Path, digest: str) -> None:
    """Adds a digest."""
    write_bytes(target.with_name(DIGESTS), "\n".join([*_known(target)[1 - KEPT_DIGESTS :], digest]) + "\n")


def _load_plain(path: Path, map_location: Any) -> dict[str, Any]:
    """Tensors and plain values of a checkpoint; nothing in it is executed.

    Raises:
        UserError: it holds anything else, so that nobody's training here wrote it, whatever its digest says.
    """
    try:
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError, ValueError) as error:
        line = next((line for line in str(error).splitlines() if "GLOBAL" in line), type(error).__name__)
        reason = " ".join(line.split())[:200]
        raise UserError(
            f"{path}: holds more than tensors and plain values ({reason}) and is refused, since a pickle can run any "
            "code when opened; start the run anew with --overwrite"
        ) from None
    return loaded


class SafeCheckpointIO(CheckpointIO):
    """Keeps last.ckpt and previous.ckpt, and the digests of the newest files in last.ckpt.sha256.

    The new digest is recorded before the file gets its name, so at every moment a whole file has its digest on record
    and a torn one has not. Files are read with `weights_only=True`: tensors and plain values, no code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes `checkpoint` (tensors and plain values only)."""
        target = Path(path)
        # In memory first: torch's own writer hides why a disk refused a file, and how large it would have been.
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()

        def write(temporary: Path) -> None:
            temporary.write_bytes(content)
            # A damaged file must not push the good one that was resumed from out of its place.
            whole = target.is_file() and _digest(target) in _known(target)
            _record(target, hashlib.sha256(content).hexdigest())
            if whole:
                target.replace(target.with_name(PREVIOUS))

        write_atomic(target, write, needed=len(content))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads `path`, or previous.ckpt beside it (with a warning) if `path` is missing or damaged.

        Raises:
            UserError: neither file is whole.
        """
        target = Path(path)
        known = _known(target)
        for candidate in (target, target.with_name(PREVIOUS)):
            if candidate.is_file() and _digest(candidate) in known:
                if candidate != target:
                    warnings.warn(f"{target} is missing or damaged; continuing from {candidate}", stacklevel=2)
                return _load_plain(candidate, map_location or "cpu")
        raise UserError(
            f"{target}: neither it nor {PREVIOUS} has one of the {len(known)} digests in {DIGESTS}; the run cannot be "
            "resumed, start it anew with --overwrite"
        )

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a file if it exists."""
        Path(path).unlink(missing_ok=True)
