"""Fault 2: a checkpoint that a power cut left torn, empty or half is noticed; the one before it takes its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmvision.recipes.segmentation import train
from tests.faults.common import cli, never_wrong, train_words
from tests.faults.conftest import Trained
from tests.recipes.killing import digests, tiny_config
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")

DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "without its last byte": lambda content: content[:-1],
    "a block of zeros": lambda content: content[:1024] + bytes(4096) + content[5120:],
    "zeros of the right length": lambda content: bytes(len(content)),
    "a longer one's tail behind it": lambda content: content + content[:512],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nnunet_folder(tmp_path_factory.mktemp("raw"), [(10, 12, 9), (12, 10, 8), (9, 9, 9)])


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Hashes of the training left alone."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train.run(tiny_config(root, out))
    return digests(out)


@pytest.mark.full
@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.fault(2, part="empty, half, torn, zeroed last.ckpt: told, continued from the one before, same result")
def test_last_is_damaged(root: Path, whole: dict[str, str], tmp_path: Path, kind: str) -> None:
    config = tiny_config(root, tmp_path / "run", max_minutes=1e-6)
    train.run(config)
    last = config.out / "last.ckpt"
    last.write_bytes(DAMAGE[kind](last.read_bytes()))
    trainer = dataclasses.replace(config.trainer, max_minutes=None)
    with pytest.warns(UserWarning, match=r"last\.ckpt is missing or damaged; continuing from .*previous\.ckpt"):
        train.run(dataclasses.replace(config, trainer=trainer, resume=True))
    never_wrong(digests(config.out) == whole, f"{kind}: the run ended with other weights or scores")


@pytest.mark.parametrize("kind", list(DAMAGE)[:3])
@pytest.mark.fault(2, part="both checkpoints damaged: refused by name, nothing overwritten")
def test_both_are_damaged(trained: Trained, tmp_path: Path, kind: str) -> None:
    run = trained.copy(tmp_path / "run")
    damaged = {path: DAMAGE[kind](path.read_bytes()) for path in run.out.glob("*.ckpt")}
    assert len(damaged) == 2
    for path, content in damaged.items():
        path.write_bytes(content)
    done = cli(*train_words(run.root, run.out, epochs=4), "--resume")
    assert done.status == 2
    assert f"{run.out / 'last.ckpt'}: neither it nor previous.ckpt has one of the " in done.said
    assert {path: path.read_bytes() for path in damaged} == damaged
    assert (run.out / "model.safetensors").read_bytes() == (trained.out / "model.safetensors").read_bytes()


@pytest.mark.fault(2, part="a torn file of digests or metrics beside whole checkpoints: refused, or written anew")
def test_files_beside(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path / "run")
    (run.out / "last.ckpt.sha256").write_bytes(b"")
    done = cli(*train_words(run.root, run.out, epochs=3), "--resume")
    assert done.status == 2
    assert "last.ckpt" in done.said
    run = trained.copy(tmp_path / "other")
    rows = (run.out / "metrics.csv").read_text()
    (run.out / "metrics.csv").write_text(rows[: len(rows) // 2])
    assert cli(*train_words(run.root, run.out, epochs=3), "--resume").status == 0
    assert (run.out / "metrics.csv").read_text().startswith(rows), "rows of the finished epochs were lost"
