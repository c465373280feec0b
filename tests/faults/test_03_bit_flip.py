"""Fault 3: one flipped bit in a weights file is refused with both digests, wherever it is."""

from __future__ import annotations

import hashlib
import re
import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from tests.faults.common import FULL, cli, never_wrong
from tests.recipes.synthetic import ball, save

PLACES = 40 if FULL else 6


def flipped(content: bytes, place: float, bit: int) -> bytes:
    damaged = bytearray(content)
    damaged[round(place * (len(content) - 1))] ^= 1 << bit
    return bytes(damaged)


def places() -> list[tuple[float, int]]:
    rng = np.random.default_rng(0)
    return [(0.0, 0), (1.0, 7), *((float(rng.random()), int(rng.integers(8))) for _ in range(PLACES - 2))]


def refused(done_said: str, status: int, weights: Path, expected: str) -> None:
    assert status == 2
    assert f"{weights}: " in done_said
    digests = set(re.findall(r"\b[0-9a-f]{64}\b", done_said))
    assert digests == {expected, hashlib.sha256(weights.read_bytes()).hexdigest()}, done_said


@pytest.mark.fault(3, part="segmentation weights: refused with file, expected and actual hash, at any place")
def test_segmentation(model: Path, tmp_path: Path) -> None:
    run, image = tmp_path / "run", save(tmp_path / "image.nii.gz", ball((8, 8, 8))[0])
    shutil.copytree(model, run)
    weights = run / "model.safetensors"
    sound = weights.read_bytes()
    for place, bit in places():
        weights.write_bytes(flipped(sound, place, bit))
        done = cli("predict", run, image, tmp_path / "out.nii.gz", "--device", "cpu")
        never_wrong(not (tmp_path / "out.nii.gz").exists(), f"labels from damaged weights ({place:.3f}, bit {bit})")
        if place > 0:  # the first byte makes it look like another kind of file
            refused(done.said, done.status, weights, hashlib.sha256(sound).hexdigest())
        assert done.status == 2


@pytest.mark.fault(3, part="fusion weights: the same")
def test_fusion(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in files("ssmvision.recipes.fusion").joinpath("pretrained").iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    weights = run / "model.safetensors"
    sound = weights.read_bytes()
    pair = [save(tmp_path / f"{name}.nii.gz", ball((16, 16, 4))[0]) for name in "ab"]
    for place, bit in places()[1:4]:
        weights.write_bytes(flipped(sound, place, bit))
        done = cli("fuse", *pair, tmp_path / "out.nii.gz", "--weights", run)
        never_wrong(not (tmp_path / "out.nii.gz").exists(), "a picture from damaged weights")
        refused(done.said, done.status, weights, hashlib.sha256(sound).hexdigest())
