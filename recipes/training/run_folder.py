"""The folder of a training: kept from being overwritten unasked, and resumed with the settings it was started with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.writing import write_bytes
from ssmvision.recipes.training.files import DIGESTS, HISTORY, LAST, PREVIOUS, TIMES

__all__ = ["RunFolder", "RunSettings"]

# Settings of every recipe that may differ on resuming.
FREE = {
    *("out", "resume", "overwrite", "data.num_workers", "trainer.max_epochs", "trainer.max_minutes"),
    *("trainer.accelerator", "trainer.threads", "trainer.validate_every"),
}


class RunSettings(Protocol):
    """What is read of a recipe's settings, which are a dataclass."""

    @property
    def out(self) -> Path:
        """Run folder."""

    @property
    def resume(self) -> bool:
        """Whether to go on with the run in `out`."""

    @property
    def overwrite(self) -> bool:
        """Whether to replace it."""


@dataclass(frozen=True)
class RunFolder:
    """What a recipe's trainings leave in their folder.

    Args:
        settings: name of the file with the settings.
        files: names of files and folders besides those that every training leaves.
        free: settings, by their dotted names, that may differ on resuming besides those of every recipe, since they
            change neither the weights' shapes nor the batches.
    """

    settings: str
    files: Collection[str] = ()
    free: Collection[str] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All files and folders."""
        return (*self.files, LAST, PREVIOUS, DIGESTS, HISTORY, TIMES, self.settings)

    def prepare(self, config: RunSettings) -> None:
        """Makes the folder ready: empty of an earlier run's files, or with a run to resume.

        Raises:
            UserError: it holds a run and neither `resume` nor `overwrite` is set, or nothing that can be resumed.
        """
        out = Path(config.out)
        if out.exists() and not out.is_dir():
            raise UserError(f"{out}: is a file; give a folder as out")
        for leftover in (path for name in self.names for path in out.glob(f".{name}.*")):
            leftover.unlink()  # a killed run may leave half a file under a temporary name
        if config.resume:
            # A run that was killed before its first checkpoint starts again, which is the same.
            if not any((out / name).is_file() for name in (LAST, PREVIOUS, self.settings)):
                raise UserError(f"{out}: no {LAST} to resume from; start without --resume, or correct out")
            self._check_same_settings(config)
            return
        existing = [out / name for name in self.names if (out / name).exists()]
        if existing and not config.overwrite:
            held = ", ".join(path.name for path in existing)
            raise UserError(f"{out}: holds a run ({held}); pass --resume or --overwrite, or another out")
        _remove(existing)
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{out}: could not be made ({error}); choose another out") from error

    def keep_settings(self, config: RunSettings) -> None:
        """Writes them into the folder."""
        write_bytes(Path(config.out) / self.settings, _text(config))

    def _check_same_settings(self, config: RunSettings) -> None:
        path, free = Path(config.out) / self.settings, FREE | set(self.free)
        old = _flat(read_json(path, "start the run anew with --overwrite"))
        new = _flat(json.loads(_text(config)))
        changed = sorted(k for k in old.keys() | new.keys() if k not in free and old.get(k) != new.get(k))
        if changed:
            name = changed[0]
            raise UserError(
                f"{path}: the run was started with {name} {old.get(name)!r}, now it is {new.get(name)!r}"
                f"{f' (and {len(changed) - 1} more: {changed[1:]})' if changed[1:] else ''}; resume with the same "
                "settings"
            )


def _text(config: Any) -> str:
    return json.dumps(asdict(config), indent=2, default=str) + "\n"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        pairs |= _flat(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return pairs


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
