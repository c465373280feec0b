"""A training that is killed, stopped or damaged ends as the one that was left alone, bit for bit."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from ssmvision.recipes.segmentation import checkpoints, train
from ssmvision.recipes.segmentation.config import TrainConfig
from tests.recipes.killing import digests, run_killed, said, start, tiny_config, wait_for
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(10, 12, 9), (12, 10, 8), (9, 9, 9)])


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[train.RunResult, float]:
    """The training left alone, and how long its steps take."""
    started = time.monotonic()
    result = train.run(tiny_config(root, tmp_path_factory.mktemp("runs") / "whole"))
    return result, time.monotonic() - started


def test_kills_at_random_moments(root: Path, whole: tuple[train.RunResult, float], tmp_path: Path) -> None:
    result, seconds = whole
    random.seed(time.time_ns())
    delays = [random.uniform(0.0, 0.9 * seconds) for _ in range(3)]
    killed = run_killed(tiny_config(root, tmp_path / "run"), delays)
    assert killed, f"none of {delays} met a running training of {seconds:.1f} s"
    assert digests(tmp_path / "run") == digests(result.out), f"killed after {delays}"


@pytest.mark.parametrize("moment", ["before the digest", "after the digest", "between the two renamings"])
def test_a_kill_inside_a_save(
    root: Path,
    whole: tuple[train.RunResult, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    config = tiny_config(root, tmp_path / "run")
    real, replace, saves = checkpoints._record, Path.replace, iter(range(100))

    class Killed(BaseException):
        """Ends the process's work at once, as a kill does: nothing catches it."""

    def record(target: Path, digest: str) -> None:
        now = next(saves) == 5
        if now and moment == "before the digest":
            raise Killed
        real(target, digest)
        if now and moment == "after the digest":
            raise Killed
        if now:
            monkeypatch.setattr(Path, "replace", renamed_once)

    def renamed_once(path: Path, target: Path) -> Path:
        replace(path, target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_record", record)
        with pytest.raises(Killed):
            train.run(config)
    monkeypatch.undo()
    torch.set_num_threads(1)
    if moment == "between the two renamings":
        with pytest.warns(UserWarning, match=r"last\.ckpt is missing or damaged; continuing from .*previous\.ckpt"):
            train.run(dataclasses.replace(config, resume=True))
    else:
        train.run(dataclasses.replace(config, resume=True))
    assert digests(config.out) == digests(whole[0].out)


@pytest.mark.parametrize("damage", ["bit", "empty"])
def test_a_damaged_checkpoint_is_noticed(
    root: Path, whole: tuple[train.RunResult, float], tmp_path: Path, damage: str
) -> None:
    config = tiny_config(root, tmp_path / "run", max_minutes=1e-6)
    train.run(config)
    last = config.out / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content if damage == "bit" else b"")
    with pytest.warns(UserWarning, match=r"last\.ckpt is missing or damaged; continuing from .*previous\.ckpt"):
        train.run(tiny_resumed(config))
    for name in ("model.safetensors", "metrics.csv"):
        assert digests(config.out)[name] == digests(whole[0].out)[name]


def tiny_resumed(config: TrainConfig) -> TrainConfig:
    trainer = dataclasses.replace(config.trainer, max_minutes=None)
    return dataclasses.replace(config, trainer=trainer, resume=True)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_signal_ends_the_run_after_the_step(
    root: Path,
    whole: tuple[train.RunResult, float],
    tmp_path: Path,
    number: signal.Signals,
    status: int,
) -> None:
    config = tiny_config(root, tmp_path / "run", checkpoint_steps=5, max_epochs=2, steps_per_epoch=1000)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, num_workers=1))
    process = start(config)
    wait_for(config.out / "last.ckpt", process)
    assert process.pid is not None
    os.killpg(process.pid, number)  # as a terminal and most schedulers do
    process.join(60)
    assert process.exitcode == status
    text = said(config).read_text()
    assert f"{number.name}: stopping after this step" in text
    step = torch.load(config.out / "last.ckpt", weights_only=True)["global_step"]
    assert f"stopped by {number.name} in epoch 1 after step {step}; continue with the same command and --resume" in text
    assert 0 < step < 1000


def test_nothing_is_written_by_a_finished_run_that_is_resumed(whole: tuple[train.RunResult, float], root: Path) -> None:
    before = digests(whole[0].out)
    again = train.run(dataclasses.replace(tiny_config(root, whole[0].out), resume=True))
    assert (again.epochs, again.steps) == (3, 12)
    assert digests(whole[0].out) == before
