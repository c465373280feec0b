"""Fault 1: a training killed at random moments, also within a save, ends as the one that was left alone."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from ssmvision.recipes.segmentation import train
from tests.faults.common import never_wrong
from tests.recipes.killing import digests, run_killed, tiny_config
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")

# Kills, 20 in all, in so many tests.
KILLS, RUNS = 5, 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(10, 12, 9), (12, 10, 8), (9, 9, 9)])


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """Hashes of the training left alone, and how long it took."""
    started, out = time.monotonic(), tmp_path_factory.mktemp("runs") / "whole"
    train.run(tiny_config(root, out))
    return digests(out), time.monotonic() - started


@pytest.mark.full
@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.fault(1, part="SIGKILL at 20 random moments: weights, card and metrics of the resumed run bit-identical")
def test_killed_at_random(root: Path, whole: tuple[dict[str, str], float], tmp_path: Path, run: int) -> None:
    expected, seconds = whole
    moments = random.Random(time.time_ns())
    met, delays = 0, []
    # A run may end before its kill; such moments do not count.
    while met < KILLS and len(delays) < 10 * KILLS:
        share = [moments.uniform(0.0, 0.3 * seconds)]
        delays += share
        folder = tmp_path / f"run_{len(delays)}"
        killed = run_killed(tiny_config(root, folder), [*share, *share])
        met += killed
        if killed:
            never_wrong(digests(folder) == expected, f"killed {killed} times, {share} s after the start: other results")
    assert met >= KILLS, delays
