"""Fault 4: a malicious pickle is refused wherever weights are read, and nothing in it is ever executed."""

from __future__ import annotations

import hashlib
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmvision.convert import load_official
from ssmvision.errors import UserError
from tests.faults.common import cli, train_words
from tests.faults.conftest import Trained
from tests.recipes.synthetic import ball, save

ENDINGS = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".safetensors")


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.canary,)


def torch_saved(bomb: Bomb, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(1)}, "hook": bomb}, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()


FORMS: dict[str, Callable[[Bomb], bytes]] = {
    "pickle": pickle.dumps,
    "old pickle": lambda bomb: pickle.dumps(bomb, protocol=0),
    "torch zip": lambda bomb: torch_saved(bomb, zipped=True),
    "torch legacy": lambda bomb: torch_saved(bomb, zipped=False),
}


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.mark.parametrize("form", FORMS)
def test_the_pickles_are_malicious(canary: Path, form: str) -> None:
    content = FORMS[form](Bomb(canary))
    if form.startswith("torch"):
        torch.load(io.BytesIO(content), weights_only=False)
    else:
        pickle.loads(content)
    assert canary.exists()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.fault(4, part="predict: .pt, .pth, .ckpt, .pkl, .bin and renamed: refused with advice, never executed")
def test_predict(model: Path, tmp_path: Path, canary: Path, ending: str, form: str) -> None:
    weights = tmp_path / f"model{ending}"
    weights.write_bytes(FORMS[form](Bomb(canary)))
    shutil.copy(model / "model.json", tmp_path)
    image = save(tmp_path / "image.nii.gz", ball((8, 8, 8))[0])
    done = cli("predict", weights, image, tmp_path / "out.nii.gz")
    assert not canary.exists(), "code in the pickle ran"
    assert done.status == 2
    assert str(weights) in done.said
    if ending != ".safetensors":
        assert "a pickle can run any code when opened" in done.said
        assert "safetensors" in done.said


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ending", [".pt", ".pth", ".safetensors"])
@pytest.mark.fault(4, part="fuse and the converter of published weights: refused by name, never executed")
def test_published_weights(tmp_path: Path, canary: Path, ending: str, form: str) -> None:
    weights = tmp_path / f"published{ending}"
    weights.write_bytes(FORMS[form](Bomb(canary)))
    with pytest.raises(UserError, match=f"published{ending}"):
        load_official(weights)
    assert not canary.exists(), "code in the pickle ran"
    pair = [save(tmp_path / f"{name}.nii.gz", ball((16, 16, 4))[0]) for name in "ab"]
    done = cli("fuse", *pair, tmp_path / "out.nii.gz", "--weights", weights)
    assert not canary.exists(), "code in the pickle ran"
    assert done.status == 2
    assert str(weights) in done.said


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.fault(4, part="resume: a checkpoint with a forged checksum is refused or passed over, never executed")
def test_resume(trained: Trained, tmp_path: Path, canary: Path, form: str) -> None:
    run = trained.copy(tmp_path / "run")
    for path in run.out.glob("*.ckpt"):
        path.write_bytes(FORMS[form](Bomb(canary)))
    for path in run.out.glob("*.sha256"):
        path.write_text(hashlib.sha256(FORMS[form](Bomb(canary))).hexdigest() + "\n")
    done = cli(*train_words(run.root, run.out, epochs=3), "--resume")
    assert not canary.exists(), "code in the pickle ran"
    assert done.status == 2
    assert "last.ckpt" in done.said
