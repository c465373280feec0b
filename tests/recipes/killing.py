"""Trainings in processes of their own, which can be killed at any moment."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

from ssmvision.recipes.segmentation.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig

# Children are forked from a process that has imported everything once and used nothing.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ssmvision.recipes.segmentation.train"])


def tiny_config(root: Path, out: Path, **changes: object) -> TrainConfig:
    """A training of a second or two with everything on that a checkpoint has to keep; `changes` are trainer's."""
    trainer = TrainerConfig(
        max_epochs=3,
        steps_per_epoch=4,
        lr=0.05,
        momentum=0.9,
        ema_decay=0.8,
        save="best",
        early_stop_epochs=10,
        checkpoint_steps=1,
        validate_every=1,
        accelerator="cpu",
        threads=1,
    )
    model = ModelConfig(features_per_stage=(2, 4), n_conv_per_stage=1, n_conv_per_stage_decoder=1, mixer="none")
    data = DataConfig(root, validation_cases=("case_1",))
    return TrainConfig(
        data,
        out,
        model,
        trainer=dataclasses.replace(trainer, **changes),
        patch_size=(8, 8, 8),  # type: ignore[arg-type]
    )


def _train(config: TrainConfig, said: Path) -> None:
    from ssmvision.recipes.segmentation import train

    multiprocessing.set_start_method("fork", force=True)  # loader workers would otherwise start as this process did
    os.setsid()  # a group of its own, to be signalled with its workers
    with said.open("a") as file:
        os.dup2(file.fileno(), 2)
    train.run(config)


def said(config: TrainConfig) -> Path:
    """File with what the training of `start` wrote to standard error."""
    return config.out.with_name(f"{config.out.name}.txt")


def start(config: TrainConfig) -> BaseProcess:
    """The training in a process of its own, resumed if it was started before."""
    resume = (config.out / "config.json").is_file()
    process = CONTEXT.Process(target=_train, args=(dataclasses.replace(config, resume=resume), said(config)))
    process.start()
    return process


def run_killed(config: TrainConfig, delays: Sequence[float], timeout: float = 120.0) -> int:
    """Starts the training over and over, killed (SIGKILL) so many seconds after its folder is ready, then to its end.

    Returns:
        How many of the kills found it running.
    """
    killed = 0
    for delay in delays:
        process = start(config)
        wait_for(config.out / "config.json", process)
        time.sleep(delay)
        if process.is_alive():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join(timeout)
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += process.exitcode != 0
    process = start(config)
    process.join(timeout)
    assert process.exitcode == 0
    return killed


def wait_for(path: Path, process: BaseProcess, timeout: float = 120.0) -> None:
    """Until a file is there, or the process has ended."""
    deadline = time.monotonic() + timeout
    while not path.exists() and process.is_alive():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of what a run must leave alike."""
    names = ("model.safetensors", "model.json", "metrics.csv")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}
