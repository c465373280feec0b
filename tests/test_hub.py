"""Models as folders: the same function after loading, by us and by timm, and what is refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

import ssmvision
from ssmvision.errors import UserError
from ssmvision.hub import Card, folder, load_pretrained, save_pretrained
from ssmvision.models import FusionMamba, UMambaBot, UMambaEnc, USegS4NDBot, USegS4NDEnc, VisionMamba

SMALL: dict[str, Any] = {"features_per_stage": [4, 8, 8], "n_conv_per_stage": [2, 1, 1], "deep_supervision": True}
FUSION: dict[str, Any] = {"depths": (1, 2), "depths_decoder": (1, 1), "dims": (8, 16)}
TIMM: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "vim_tiny": ({"depth": 1, "embed_dim": 16, "img_size": 48, "num_classes": 5, "in_chans": 1}, (1, 1, 48, 48)),
    "vmamba_tiny": ({"depths": (1, 1), "dims": (8, 16), "num_classes": 5}, (1, 3, 64, 48)),
    "s4nd_convnext_micro": ({"depths": (1, 1), "dims": (8, 16), "num_classes": 0}, (1, 3, 64, 64)),
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "bot": (lambda: UMambaBot(3, 2, 3, **SMALL), (1, 2, 16, 16, 8), 1),
    "bot 2d, anisotropic": (lambda: UMambaBot(2, 1, 2, strides=[1, [1, 2], 2], **SMALL), (1, 1, 8, 16), 1),
    "bot without mixer": (lambda: UMambaBot(2, 1, 2, mixer="none", conv_bias=False, **SMALL), (1, 1, 16, 16), 1),
    "enc": (lambda: UMambaEnc(3, 1, 2, input_size=(8, 16, 16), **SMALL), (1, 1, 8, 16, 16), 1),
    "s4nd bot": (lambda: USegS4NDBot(2, 1, 2, **SMALL), (1, 1, 16, 16), 1),
    "s4nd enc": (lambda: USegS4NDEnc(2, 1, 2, input_size=16, **SMALL), (1, 1, 16, 24), 1),
    "fusion": (lambda: FusionMamba(**FUSION), (1, 1, 24, 30), 2),
    "fusion, published gate": (lambda: FusionMamba(gate="official", fusion_d_state=8, **FUSION), (1, 1, 16, 16), 2),
    "fusion, faithful": (lambda: FusionMamba(faithful=True, **FUSION), (1, 1, 16, 16), 2),
}


def outputs(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    with torch.no_grad():
        out = model.eval()(*inputs)
    return out if isinstance(out, list) else [out]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_pretrained(timm.create_model("vim_tiny", **TIMM["vim_tiny"][0]), tmp_path / "saved")


@pytest.mark.parametrize("name", TIMM)
def test_timm_models(tmp_path: Path, name: str) -> None:
    settings, shape = TIMM[name]
    model, x = timm.create_model(name, **settings), torch.randn(shape)
    folder = ssmvision.hub.save_pretrained(model, tmp_path / "saved")
    expected = outputs(model, x)
    assert same(outputs(load_pretrained(folder), x), expected)
    assert same(outputs(load_pretrained(f"local-dir:{folder}"), x), expected)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert same(outputs(by_timm, x), expected)
    assert by_timm.num_classes == settings["num_classes"]


def test_timm_that_opens_the_path_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(model: nn.Module, config_path: Path, **arguments: Any) -> None:
        config_path.open("w").close()  # as timm 1.0.29 and 1.0.30 do with what they call a string
        save_config_for_hf(model, str(config_path), **arguments)

    monkeypatch.setattr(folder, "save_config_for_hf", save)
    save_pretrained(timm.create_model("vim_tiny", **TIMM["vim_tiny"][0]), tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["architecture"] == "vim_tiny"


def test_timm_adapts_a_saved_model(saved: Path) -> None:
    model = timm.create_model(f"local-dir:{saved}", pretrained=True, num_classes=2, in_chans=3)
    whole = load_pretrained(saved)
    assert outputs(model, torch.zeros(1, 3, 48, 48))[0].shape == (1, 2)
    assert torch.equal(model.layers[0].mixer.A_log, whole.layers[0].mixer.A_log)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(tmp_path: Path, name: str) -> None:
    build, shape, count = NETWORKS[name]
    model, inputs = build(), [torch.rand(shape) for _ in range(count)]
    loaded = load_pretrained(save_pretrained(model, tmp_path))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    assert same(outputs(loaded, *inputs), outputs(model, *inputs))


def test_own_arguments_and_what_cannot_be_saved(tmp_path: Path) -> None:
    arguments = TIMM["vim_tiny"][0]
    with pytest.raises(ValueError, match=r"has other tensors than the model.*model_args"):
        save_pretrained(timm.create_model("vim_tiny", **arguments), tmp_path, model_args={**arguments, "depth": 2})
    assert not list(tmp_path.iterdir())
    model = UMambaBot(2, 1, 2, features_per_stage=[4, 8], mixer="s4nd")
    loaded = load_pretrained(save_pretrained(model, tmp_path, entries={"of_mine": 1}))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert json.loads((tmp_path / "config.json").read_text())["of_mine"] == 1
    with pytest.raises(TypeError, match="a VisionMamba cannot be saved: build it with timm"):
        save_pretrained(VisionMamba(img_size=32, depth=1, embed_dim=16), tmp_path)


def test_card_tells_whose_weights_these_are(tmp_path: Path) -> None:
    model = timm.create_model("vim_tiny", **TIMM["vim_tiny"][0])
    save_pretrained(model, tmp_path / "own")
    page = (tmp_path / "own" / "README.md").read_text()
    assert "licence of the weights | not stated" in page
    assert "apache" not in page + (tmp_path / "own" / "config.json").read_text()
    card = Card("Mine", "Finds | things.", "cc-by-4.0", "own data", ("Not for patients.",), {"Dice": "0.9 | 0.8"})
    save_pretrained(model, tmp_path / "told", card)
    page = (tmp_path / "told" / "README.md").read_text()
    assert page.startswith('---\nlicense: "cc-by-4.0"\nlibrary_name: timm\n')
    assert "# Mine\n\nFinds | things." in page
    assert "- Not for patients." in page
    assert "| Dice | 0.9 \\| 0.8 |" in page
    config = json.loads((tmp_path / "told" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "cc-by-4.0"
    assert config["ssmvision"]["sha256"] in page


def test_other_weights_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: sha256 is .* expects .*copy both again"):
        load_pretrained(saved)


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("config.json", None, "no such file"),
        ("model.safetensors", None, "no such file"),
        ("config.json", b"{", "not readable JSON"),
        ("config.json", b"[]", "names no architecture"),
        ("config.json", b'{"architecture": "vim_huge", "pretrained_cfg": {}}', "unknown architecture 'vim_huge'"),
        ("config.json", b'{"architecture": "FusionMamba"}', "does not build the model"),
        ("config.json", b'{"architecture": "vim_tiny", "ssmvision": {"format": 9}}', "format is 9.*update"),
        ("config.json", b'{"architecture": "vim_tiny", "pretrained_cfg": {}}', "does not build the model"),
    ],
)
def test_damaged_folders(saved: Path, file: str, content: bytes | None, told: str) -> None:
    (saved / file).unlink()
    if content is not None:
        (saved / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"{file}: .*{told}"):
        load_pretrained(saved)


class Bomb:
    """Unpickling it would create a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.canary,)


def test_no_pickle_is_opened(saved: Path, tmp_path: Path) -> None:
    """Neither one that has the weights' name, nor one beside them."""
    canary = tmp_path / "canary"
    torch.save({"model": Bomb(canary)}, saved / "pytorch_model.bin")
    load_pretrained(saved)
    config = json.loads((saved / "config.json").read_text())
    del config["ssmvision"]
    (saved / "config.json").write_text(json.dumps(config))
    shutil.copy(saved / "pytorch_model.bin", saved / "model.safetensors")
    with pytest.raises(UserError, match="not a valid safetensors"):
        load_pretrained(saved)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists(), "the canary must sing when it is unpickled"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot write"):
        save_pretrained(UMambaBot(2, 1, 2, features_per_stage=[4, 8]), tmp_path / "file")
