"""Writes the checkpoints, and ends a run on SIGTERM or Ctrl-C after the running step."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from ssmvision.recipes.segmentation.checkpoints import LAST

__all__ = ["SIGNALS", "Checkpoints", "interruptible", "outlive_signals", "restored_handlers"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A worker that got SIGTERM ends by itself after so long.
WORKER_SECONDS = 10


class Checkpoints(Checkpoint):
    """Saves last.ckpt after every epoch, every so many steps, and when the run is told to stop.

    A scheduler's SIGTERM or the first Ctrl-C ends the run after the running step, with that step in last.ckpt. During
    validation it ends after the running case, and resuming repeats what came since the last checkpoint. A second signal
    ends it at once.

    Args:
        folder: receives last.ckpt.
        steps: save after every so many steps, too; None: after epochs only.
        between: whether a run can be resumed between epochs; if not, a signal ends the run without saving the step.
    """

    def __init__(self, folder: Path, steps: int | None = None, between: bool = True) -> None:
        self.path, self.steps, self.between = folder / LAST, steps, between
        self.received: int | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listens; Lightning's own handler would wait for the end of the epoch and does not save."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self.received is not None:
            _leave(number)
        self.received = number
        name = signal.Signals(number).name
        print(f"{name}: stopping after this step; once more stops at once", file=sys.stderr, flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves if it is time, and ends the run if it was told to; the last step of an epoch is saved with it."""
        stop = self._told_to_stop(trainer)
        if trainer.is_last_batch:
            return
        due = self.steps is not None and trainer.global_step % self.steps == 0
        if self.between and (stop or due):
            self._save(trainer, pl_module)
        if stop:
            self.end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the epoch."""
        self._save(trainer, pl_module)
        if self._told_to_stop(trainer):
            self.end(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Ends the run if it was told to. Several processes have different numbers of cases, and go on to the end."""
        if self.received is not None and trainer.world_size == 1 and trainer.state.fn == "fit":
            self.end(trainer)

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        # In the middle of a row of bad steps the weights may be bad already: the good checkpoint stays.
        if not getattr(module, "streak", 0):
            trainer.save_checkpoint(self.path)

    def _told_to_stop(self, trainer: Trainer) -> bool:
        """Whether any process was: all of them must end after the same step."""
        told = self.received is not None
        return trainer.strategy.reduce_boolean_decision(told, all=False) if trainer.world_size > 1 else told

    def end(self, trainer: Trainer) -> NoReturn:
        """Says how to go on, and leaves."""
        number = self.received or signal.SIGTERM
        if trainer.is_global_zero:
            print(
                f"stopped by {signal.Signals(number).name} in epoch {trainer.current_epoch + 1} after step "
                f"{trainer.global_step}; continue with the same command and --resume",
                file=sys.stderr,
                flush=True,
            )
        _leave(number)


def _leave(number: int) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


def outlive_signals(worker: int) -> None:
    """Lets a loader's worker process serve the running step to its end when a terminal or scheduler signals it, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_SECONDS))


@contextmanager
def restored_handlers() -> Iterator[None]:
    """Puts the handlers of SIGTERM and SIGINT back afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(trainer: Trainer) -> Iterator[None]:
    """Turns Lightning's exit on Ctrl-C back into KeyboardInterrupt, and its ignoring of further ones off again.

    Raises:
        KeyboardInterrupt: Lightning stopped on Ctrl-C.
    """
    with restored_handlers():
        try:
            yield
        except SystemExit as error:
            if trainer.interrupted and error.code == 1:
                raise KeyboardInterrupt from None
            raise
