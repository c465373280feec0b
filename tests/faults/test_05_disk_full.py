"""Fault 5: a disk that fills up leaves no half file and keeps the old one; the message says how much room is needed."""

from __future__ import annotations

import re
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.checkpoints import SafeCheckpointIO
from tests.faults.common import cli, labels_of, never_wrong, train_words
from tests.faults.conftest import Trained
from tests.recipes.synthetic import ball, save

SHAPE = (28, 28, 24)
ROOM = r"takes up to (\d+) bytes, (\d+) are free"


@contextmanager
def file_size(most: int) -> Iterator[None]:
    """No file may grow larger: writing fails in the middle, as on a full disk, without a disk of its own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """An image whose labels do not compress."""
    return save(tmp_path / "in" / "image.nii.gz", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))


@pytest.mark.parametrize("what", ["labels", "probabilities", "uncertainty"])
@pytest.mark.fault(5, part="prediction: status 2, bytes needed, the old output intact, no temporary file left")
def test_prediction(model: Path, noise: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / "out"
    flags = [] if what == "labels" else [f"--{what}"]
    words = ("predict", model, noise.parent, out, "--device", "cpu", *flags)
    assert cli(*words).status == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with file_size(2048):
        done = cli(*words, "--overwrite")
    assert done.status == 2, done.said
    room = re.search(rf"could not be written .*{ROOM}", done.said)
    assert room is not None, done.said
    assert int(room[1]) > 2048
    never_wrong({path.name: path.read_bytes() for path in out.iterdir()} == before, "an old output was damaged")
    assert 0.1 < labels_of(out / "image.nii.gz").mean() < 0.9


@pytest.mark.fault(5, part="training: status 2, bytes needed, the old checkpoints intact and resumed from")
def test_checkpoint(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.out.glob("*.ckpt*")}
    words = [*train_words(run.root, run.out, epochs=4), "--resume"]
    with file_size(2048):
        done = cli(*words)
    assert done.status == 2, done.said
    assert re.search(rf"last\.ckpt: could not be written .*{ROOM}", done.said), done.said
    after = {path.name: path.read_bytes() for path in run.out.glob("*.ckpt")}
    never_wrong(all(after[name] in before.values() for name in after), "a checkpoint was damaged")
    assert not [path for path in run.out.iterdir() if path.name.startswith(".")]
    assert cli(*words).status == 0


@pytest.mark.fault(5, part="a cache of prepared cases: status 2, named, and the next run makes it whole")
def test_cache(trained: Trained, tmp_path: Path) -> None:
    words = [*train_words(trained.root, tmp_path / "run"), "--data.cache_dir", str(tmp_path / "cache")]
    with file_size(2048):
        done = cli(*words)
    assert done.status == 2, done.said
    assert str(tmp_path / "cache") in done.said
    assert cli(*words, "--overwrite").status == 0
    model = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert cli(*train_words(trained.root, tmp_path / "other"), "--data.cache_dir", tmp_path / "fresh").status == 0
    never_wrong((tmp_path / "other" / "model.safetensors").read_bytes() == model, "a torn cache was trained on")


@pytest.mark.full
@pytest.mark.fault(5, part="a real full disk (1 MB in memory): the same for a prediction and a checkpoint")
def test_full_disk(model: Path, noise: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        words = ("predict", model, noise, disk / "out.nii.gz", "--device", "cpu")
        assert cli(*words).status == 0
        before = (disk / "out.nii.gz").read_bytes()
        (disk / "ballast").write_bytes(bytes((1 << 20) - len(before) - 8192))
        done = cli(*words, "--overwrite")
        assert done.status == 2
        assert re.search(rf"No space left on device.*{ROOM}", done.said), done.said
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "out.nii.gz"]
        never_wrong((disk / "out.nii.gz").read_bytes() == before, "the old output was damaged")
        with pytest.raises(UserError, match=rf"last\.ckpt: could not be written .*{ROOM}"):
            SafeCheckpointIO().save_checkpoint(
                {"state_dict": {"w": np.zeros(1)}, "ballast": "x" * (1 << 16)}, disk / "last.ckpt"
            )
        assert sorted(path.name for path in disk.iterdir()) == ["ballast", "out.nii.gz"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_image_is_noise(noise: Path) -> None:
    assert noise.stat().st_size > 50_000
    assert ball(SHAPE)[0].shape == SHAPE
