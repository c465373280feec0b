"""Helpers of the fault suite: the command line in this process, a small model, and answers that must not be wrong."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from ssmvision.cli import main
from ssmvision.errors import UserError

__all__ = [
    *("FULL", "Done", "SilentlyWrongError", "child", "child_environment", "ended", "fork"),
    *("cli", "labels_of", "never_wrong", "refusal", "run_folder", "train_words"),
]

# `make faults` injects everything; otherwise a sample that takes seconds.
FULL = os.environ.get("SSMVISION_FAULTS") == "full"


class SilentlyWrongError(AssertionError):
    """A wrong result that nothing pointed out: worse than a crash."""


def never_wrong(right: bool, what: str) -> None:
    """Fails as a silent wrong answer unless `right`."""
    if not right:
        raise SilentlyWrongError(what)


def refusal(call: Callable[[], object]) -> str:
    """What a call was refused with as a `UserError`; "" where it was not."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@dataclass(frozen=True)
class Done:
    """What a command did: its exit status and all it said."""

    status: int
    said: str


def cli(*words: object) -> Done:
    """Runs a command line in this process; an error that is not the user's comes through as an exception."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        status = main([str(word) for word in words])
    return Done(status, said.getvalue())


def train_words(root: Path, out: Path, epochs: int = 2, steps: int = 2) -> list[str]:
    """The command line of a training of a few seconds on a folder of `tests.recipes.synthetic.nnunet_folder`."""
    model = {"mixer": "none", "features_per_stage": "[4,8]", "n_conv_per_stage": 1, "n_conv_per_stage_decoder": 1}
    trainer = {"max_epochs": epochs, "steps_per_epoch": steps, "accelerator": "cpu", "threads": 1, "lr": 0.01}
    settings = {"data.root": root, "out": out, "patch_size": "[8,8,8]", "data.num_workers": 0}
    settings |= {f"model.{name}": value for name, value in model.items()}
    settings |= {f"trainer.{name}": value for name, value in trainer.items()}
    return ["train", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def child_environment() -> dict[str, str]:
    """For processes of their own: one thread, this interpreter's packages, this repository's tests."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}


def child(arguments: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` to its end."""
    command = [sys.executable, *(str(word) for word in arguments)]
    return subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False, **options)


def fork(work: Callable[[], int], log: Path) -> int:
    """Runs `work` in a copy of this process, whose imports are done; its exit status is what `work` returns.

    Args:
        work: run in the copy; an exception ends it with status 1.
        log: takes what the copy writes to standard output and error.

    Returns:
        The copy's process id, for `ended`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        with log.open("a", buffering=1) as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
            # pytest has put its own streams in their place.
            sys.stdout = sys.stderr = stream
            status = work()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        log.open("a").write(traceback.format_exc())
    finally:
        os._exit(status)


def ended(pid: int, seconds: float = 300) -> int:
    """Waits for a copy; its exit status, or minus the signal that killed it.

    Raises:
        AssertionError: it hangs; it is killed then.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError(f"process {pid} did not end within {seconds} s")


def labels_of(path: Path) -> NDArray[Any]:
    """Voxels of a written label map."""
    return np.asanyarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]


def run_folder(
    folder: Path,
    channels: Sequence[str] = ("MRI",),
    classes: int = 2,
    spacing_mm: tuple[float, float, float] | None = None,
    patch: tuple[int, int, int] = (8, 8, 8),
    seed: int = 0,
) -> Path:
    """Writes an untrained network whose classes are about equally frequent, so that its label maps show a pattern."""
    import torch

    from ssmvision.recipes.segmentation.architecture import build_network, plan_network
    from ssmvision.recipes.segmentation.config import ModelConfig
    from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
    from ssmvision.recipes.segmentation.weights import ModelCard, save_model

    torch.manual_seed(seed)
    small = ModelConfig(
        mixer="none", features_per_stage=(4, 8), n_conv_per_stage=1, n_conv_per_stage_decoder=1, deep_supervision=False
    )
    plan = plan_network(small, patch, (1.0, 1.0, 1.0), len(channels), classes)
    network = build_network(plan).eval()
    with torch.no_grad():
        logits = network(torch.randn(4, len(channels), *patch))
        head: Any = network.get_submodule("decoder.seg_layers.0")
        head.bias -= logits.movedim(1, 0).flatten(1).median(1).values
    labels = {"background": 0} | {f"class_{i}": i for i in range(1, classes)}
    how = Preprocessing("RAS", spacing_mm, (ChannelScale("zscore"),) * len(channels))
    card = ModelCard(plan, tuple(channels), labels, patch, how)
    folder.mkdir(parents=True)
    save_model(folder, network, replace(card))
    return folder
