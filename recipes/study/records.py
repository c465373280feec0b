"""What both studies keep: trainings, costs and choices, so that the same command goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.datalist import read_json
from ssmvision.recipes.segmentation.writing import write_bytes
from ssmvision.recipes.training.files import TIMES
from ssmvision.recipes.workers import Outcome, map_cases

__all__ = ["Recorded", "check_budget", "finished", "kept", "record", "slug", "spent_seconds", "train_all"]

C = TypeVar("C")
LOG = "log.txt"


class Recorded(Protocol):
    """A training of a study."""

    @property
    def name(self) -> str:
        """Part of its paths."""

    @property
    def run(self) -> Path:
        """Run folder."""

    @property
    def scores(self) -> Path:
        """The file whose presence says that the training is finished, predicted and scored."""

    def settings(self) -> dict[str, Any]:
        """What decides the result, as JSON values."""


T = TypeVar("T", bound=Recorded)


def slug(name: str) -> str:
    """A name for paths: "UMambaBot/none" is "umambabot-none"."""
    return name.lower().replace("/", "-").replace(" ", "-")


def check_budget(max_minutes: float | None) -> None:
    """Refuses a budget of time, by which a busy machine would give one network fewer steps than another.

    Raises:
        UserError: there is one.
    """
    if max_minutes is not None:
        raise UserError(f"trainer.max_minutes: {max_minutes} would give networks unequal steps; give null")


def finished(training: Recorded) -> bool:
    """Whether the training was scored before.

    Raises:
        UserError: with other settings.
    """
    if not training.scores.is_file():
        return False
    before, now = read_json(training.scores, "remove the folder")["settings"], training.settings()
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if changed:
        raise UserError(
            f"{training.scores}: {changed[0]} was {before.get(changed[0])}, now it is {now.get(changed[0])}; "
            "choose another --out or pass --overwrite"
        )
    return True


def record(training: T, work: Callable[[T], dict[str, Any]]) -> None:
    """Writes what `work` finds to `training.scores`, unless it is there; what `work` prints goes to the run's log.txt.

    Raises:
        UserError: the work failed.
    """
    if finished(training):
        return
    try:
        training.run.mkdir(parents=True, exist_ok=True)
        with (training.run / LOG).open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
            try:
                content = work(training)
            except Exception:
                traceback.print_exc(file=log)
                raise
    except Exception as error:  # such as a full GPU, or a fault of one network: the other trainings go on
        raise UserError(f"{training.run}: {type(error).__name__}: {error}; {LOG} there has the details") from error
    write_bytes(training.scores, json.dumps({"settings": training.settings()} | content, indent=1) + "\n")


def spent_seconds(run: Path) -> float:
    """Seconds that a training took over all its starts, to the end of its last epoch; validations included."""
    return float((run / TIMES).read_text(encoding="utf-8").splitlines()[-1].partition(",")[2])


def train_all(run: Callable[[T], None], trainings: Sequence[T], jobs: int, tell: Callable[[str], None]) -> list[str]:
    """Runs those trainings that are not finished, telling of each; returns what went wrong, a line a training."""
    waiting = [training for training in trainings if not finished(training)]
    tell(f"trainings {len(trainings)}, {len(trainings) - len(waiting)} finished before")
    count = iter(range(len(trainings) - len(waiting) + 1, len(trainings) + 1))
    outcomes: list[Outcome[None]] = map_cases(
        run,
        [(training.name, training) for training in waiting],
        jobs,
        lambda name: tell(f"[{next(count)}/{len(trainings)}] {name}"),
    )
    return [f"{outcome.case}: {outcome.problem}" for outcome in outcomes if outcome.problem is not None]


def kept(path: Path, settings: Any, kind: Callable[..., C], find: Callable[[], C]) -> C:
    """A dataclass of JSON values that was found before at the same settings, or now, and then kept.

    Args:
        path: JSON file.
        settings: that decide the values.
        kind: the dataclass.
        find: finds one, such as a measured cost.
    """
    decided = json.loads(json.dumps(settings, default=str))
    if path.is_file() and (before := read_json(path, "remove it"))["settings"] == decided:
        return kind(**before["found"])
    found = find()
    content = {"settings": decided, "found": asdict(found)}  # type: ignore[call-overload]
    write_bytes(path, json.dumps(content, indent=1) + "\n")
    return found
