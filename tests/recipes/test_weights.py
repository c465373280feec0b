from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import ModelConfig
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing
from ssmvision.recipes.segmentation.weights import CARD, WEIGHTS, ModelCard, load_weights, open_model, save_model


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    plan = plan_network(ModelConfig(features_per_stage=(2, 4), mixer="none"), (8, 8, 8), (1, 1, 1), 1, 2)
    how = Preprocessing("RAS", (1.0, 1.0, 2.0), (ChannelScale("zscore"),))
    card = ModelCard(plan, ("MRI",), {"background": 0, "ball": 1}, (8, 8, 8), how, {"epochs": 3})
    torch.manual_seed(0)
    save_model(tmp_path / "run", build_network(plan), card)
    return tmp_path / "run"


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        open_model(path)
    for part in parts:
        assert part in str(error.value)


def test_round_trip_from_folder_and_file(saved: Path) -> None:
    (a, card), (b, _) = open_model(saved), open_model(saved / WEIGHTS)
    assert card.preprocessing.spacing_mm == (1.0, 1.0, 2.0)
    assert card.training == {"epochs": 3}
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    assert not any(p.name.startswith(".") for p in saved.iterdir())


def test_damaged_files_are_refused(saved: Path) -> None:
    weights, card = saved / WEIGHTS, saved / CARD
    content = weights.read_bytes()
    flipped = bytearray(content)
    flipped[-1] ^= 1
    weights.write_bytes(flipped)
    expected = json.loads(card.read_text())["sha256"]
    refused(saved, str(weights), expected, "copy it again")
    for damaged in (content[:40], b"", b"\x10" + content[1:]):
        weights.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model\.safetensors: not a valid safetensors file .*copy it again"):
            load_weights(weights)
    weights.write_bytes(content)
    description = json.loads(card.read_text())
    del description["sha256"]
    card.write_text(json.dumps(description))
    refused(saved, str(weights), "expects None")
    card.unlink()
    refused(saved, str(card), "no such file")


def test_weights_of_another_network_are_refused(saved: Path) -> None:
    card = saved / CARD
    description = json.loads(card.read_text())
    description["architecture"]["arguments"]["features_per_stage"] = [2, 8]
    card.write_text(json.dumps(description))
    refused(saved, WEIGHTS, "model.json saved with these weights")
    description["architecture"]["name"] = "os.system"
    card.write_text(json.dumps(description))
    refused(saved, "'os.system' is unknown", "UMambaBot")


class Canary:
    """Unpickling this makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.ckpt", "w.pkl", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("how", ["pickle", "torch", "torch_legacy"])
def test_pickles_are_refused_and_never_run(saved: Path, tmp_path: Path, name: str, how: str) -> None:
    canary, path = tmp_path / "canary", saved / name
    if how == "pickle":
        path.write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save({"a": Canary(canary)}, path, _use_new_zipfile_serialization=how == "torch")
    refused(path, str(path), "refused", ".safetensors")
    assert not canary.exists()
