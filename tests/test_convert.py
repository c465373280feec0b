"""Loading published checkpoints: what is unwrapped, what fits, and what is never executed."""

import argparse
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ssmvision.convert import convert_state_dict, load_official, unwrap_checkpoint
from ssmvision.errors import UserError
from ssmvision.models import VisionMamba


def model(**kwargs):
    return VisionMamba(**{"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_classes": 3} | kwargs)


@pytest.mark.parametrize("wrapper", ["model", "model_ema", "state_dict", "state_dict_ema", "network_weights"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_and_prefixes_come_off(wrapper, prefix):
    state = model().state_dict()
    wrapped = {wrapper: {prefix + k: v for k, v in state.items()}, "epoch": 3, "args": argparse.Namespace(lr=1)}
    out = convert_state_dict(model(), wrapped)
    assert list(out) == list(state)
    assert all(torch.equal(out[k], v) for k, v in state.items())


def test_averaged_weights_are_taken_on_request():
    both = {"model": {"w": torch.zeros(1)}, "model_ema": {"w": torch.ones(1)}}
    assert unwrap_checkpoint(both)["w"] == 0
    assert unwrap_checkpoint(both, prefer_ema=True)["w"] == 1


@pytest.mark.parametrize("nothing", [{}, {"epoch": 3}, {"model": {"epoch": 3}}])
def test_no_state_dict_is_an_error(nothing):
    with pytest.raises(ValueError, match="no state dict"):
        unwrap_checkpoint(nothing)


def test_what_does_not_fit_is_listed():
    state = model().state_dict()
    state["layers.0.mixer.extra"] = state.pop("layers.0.mixer.A_b_log")
    with pytest.raises(ValueError, match=r"1 missing: layers\.0\.mixer\.A_b_log; 1 unknown: layers\.0\.mixer\.extra"):
        convert_state_dict(model(), state)
    with pytest.raises(ValueError, match=r"2 of another shape: head\.weight \(3, 16\) for \(7, 16\), head\.bias"):
        convert_state_dict(model(num_classes=7), model().state_dict())
    with pytest.raises(ValueError, match="and 9 more"):
        convert_state_dict(model(), model(depth=2).state_dict())


def test_models_without_an_official_layout_are_refused():
    with pytest.raises(TypeError, match="Linear has no official weights"):
        convert_state_dict(nn.Linear(2, 2), {"weight": torch.zeros(2, 2)})


def test_position_embedding_options_reach_the_model():
    official = convert_state_dict(model(img_size=48), model().state_dict(), pos_embed_rule="official")
    aware = convert_state_dict(model(img_size=48), model().state_dict())
    assert official["pos_embed"].shape == aware["pos_embed"].shape == (1, 37, 16)


def test_training_checkpoints_load(tmp_path):
    state = model().state_dict()
    checkpoint = {"model": state, "epoch": 299, "args": argparse.Namespace(lr=1e-3, name="vim", sizes=[1, 2])}
    torch.save(checkpoint, tmp_path / "vim.pth")
    loaded = load_official(tmp_path / "vim.pth")
    assert loaded["args"].lr == 1e-3
    model().load_state_dict(convert_state_dict(model(), loaded))


def test_safetensors_load(tmp_path):
    save_file(model().state_dict(), tmp_path / "vim.safetensors")
    assert convert_state_dict(model(), load_official(tmp_path / "vim.safetensors"))["head.bias"].shape == (3,)


class Canary:
    """Unpickling it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, kind):
    path, canary = tmp_path / "weights.pth", tmp_path / "canary"
    content = {"model": {"w": torch.zeros(1)}, "args": Canary(canary)}
    if kind == "bare":
        path.write_bytes(pickle.dumps({"args": Canary(canary)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(UserError, match=r"weights\.pth: refused.*safetensors") as caught:
        load_official(path)
    assert not canary.exists()
    if kind == "zip":
        assert "open" in str(caught.value)
    pickle.loads(pickle.dumps(Canary(canary))).close()
    assert canary.exists(), "the canary must sing when it is unpickled"


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.pth", None, "no such file"),
        ("empty.pth", b"", "not a readable"),
        ("cut.pth", b"PK\x03\x04 cut short", "not a readable|refused"),
        ("cut.safetensors", b"\x01\x02", "not a readable safetensors"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: ({told})"):
        load_official(path)


def test_a_bare_tensor_is_no_checkpoint(tmp_path):
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    with pytest.raises(UserError, match="holds a Tensor"):
        load_official(tmp_path / "tensor.pth")
