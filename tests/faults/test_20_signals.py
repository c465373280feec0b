"""Fault 20: workers that die, Ctrl-C and SIGTERM: the cause is shown, nothing hangs, nothing is left running."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ssmvision.cli import main
from ssmvision.recipes.segmentation.checkpoints import SafeCheckpointIO
from ssmvision.recipes.workers import map_cases
from tests.faults.common import ended, fork, train_words
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")


def in_session(leader: int) -> list[int]:
    """Processes that still run and whose session is the leader's."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and int(entry.name) != leader:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.fault(20, part="the command with loader workers: status 143 or 130 within 60 s, no process left")
def test_command(tmp_path: Path, number: signal.Signals, status: int) -> None:
    root = nnunet_folder(tmp_path / "raw", [(12, 14, 10)] * 2)
    words = [*train_words(root, tmp_path / "run", epochs=1, steps=3000), "--data.num_workers", "1"]
    words += ["--trainer.checkpoint_steps", "5", "--data.validation_fraction", "0"]

    def train() -> int:
        os.setsid()
        return main(words)

    pid = fork(train, tmp_path / "log")
    last, deadline = tmp_path / "run" / "last.ckpt", time.monotonic() + 120
    while not last.exists():
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), (tmp_path / "log").read_text()
        time.sleep(0.01)
    os.kill(pid, number)
    sent = time.monotonic()
    assert ended(pid, 60) == status, (tmp_path / "log").read_text()
    assert time.monotonic() - sent < 60
    deadline = time.monotonic() + 10
    while left := in_session(pid):
        assert time.monotonic() < deadline, f"processes {left} of the training still run"
        time.sleep(0.05)
    said = (tmp_path / "log").read_text()
    assert f"{number.name}: stopping after this step" in said
    assert "continue with the same command and --resume" in said
    assert 0 < SafeCheckpointIO().load_checkpoint(last)["global_step"] < 3000


def die(case: str) -> str:
    """A case whose file crashes the library that reads it."""
    if case == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return case.upper()


@pytest.mark.full
@pytest.mark.fault(20, part="a worker killed while it reads a case: the case and the signal are named, others are done")
def test_case_worker_dies() -> None:
    outcomes = map_cases(die, [(case, case) for case in "abc"], workers=2)
    assert [outcome.value for outcome in outcomes] == ["A", None, "C"]
    assert "case 'b': the worker process that read it was killed by signal 9 (SIGKILL)" in str(outcomes[1].problem)
    assert np.all([outcome.problem is None for outcome in outcomes[::2]])
