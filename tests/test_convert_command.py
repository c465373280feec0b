"""`ssmvision convert`: files of the published structures become folders; files with code in them become errors."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.hub import load_pretrained
from ssmvision.hub.conversion import convert_file
from ssmvision.hub.identify import identify
from ssmvision.models import FusionMamba, UMambaBot, UMambaEnc
from ssmvision.models.umamba_plans import arguments_from_plans
from ssmvision.pickled_numbers import NumberType, number

PLANS: dict[str, Any] = {
    "configurations": {
        "3d_fullres": {
            "patch_size": [8, 16, 16],
            "UNet_base_num_features": 4,
            "unet_max_num_features": 8,
            "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
            "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
            "n_conv_per_stage_encoder": [2, 2, 2],
            "n_conv_per_stage_decoder": [2, 2],
        },
        "3d_cascade_fullres": {"inherits_from": "3d_fullres"},
    }
}


def umamba(name: str) -> UMambaBot | UMambaEnc:
    arguments: dict[str, Any] = {
        "features_per_stage": [4, 8, 8],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "deep_supervision": True,
    }
    return UMambaBot(3, 2, 3, **arguments) if name == "bot" else UMambaEnc(3, 2, 3, input_size=(8, 16, 16), **arguments)


def nnunet_checkpoint(model: UMambaBot | UMambaEnc) -> dict[str, Any]:
    """As nnU-Net's trainer saves it after torch.compile, on a GPU."""
    return {
        "network_weights": {f"_orig_mod.{key}": value for key, value in model.official_state_dict().items()},
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "grad_scaler_state": {"scale": 65536.0},
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "epoch_end_timestamps": [1.5]},
        "_best_ema": np.float64(0.75),
        "current_epoch": 1000,
        "init_args": {"plans": PLANS, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainerUMambaEnc",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


def said(text: str) -> str:
    return " ".join(text.split())


def test_vim_with_its_training_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Name, size and number of classes are found out; averaged weights are taken on request."""
    model = timm.create_model("vim_tiny", num_classes=5)
    averaged = {key: value + 1 for key, value in model.state_dict().items()}
    settings = argparse.Namespace(model="vim_tiny_patch16_224", lr=5e-4, output_dir=Path("run").name)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model": state, "model_ema": averaged, "epoch": 299, "args": settings}, tmp_path / "vim.pth")
    assert main(["convert", str(tmp_path / "vim.pth"), str(tmp_path / "out"), "--licence", "apache-2.0"]) == 0
    text = said(capsys.readouterr().out)
    assert f"vim_tiny, {sum(p.numel() for p in model.parameters()):,} parameters" in text
    assert f"same name, same numbers {len(state)} " in text
    assert "largest difference 0.0e+00" in text
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = model.eval()(x)
        assert torch.equal(load_pretrained(tmp_path / "out")(x), expected)
        by_timm = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
        assert torch.equal(by_timm.eval()(x), expected)
    assert by_timm.pretrained_cfg["license"] == "apache-2.0"
    page = (tmp_path / "out" / "README.md").read_text()
    assert re.search(r"converted from \| `vim\.pth`, sha256 `[0-9a-f]{64}`", page)
    assert "hustvl/Vim-tiny-midclstok" in page

    assert main(["convert", str(tmp_path / "vim.pth"), str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err
    words = ["--model", "vim_tiny", "--weights", "ema", "--overwrite"]
    assert main(["convert", str(tmp_path / "vim.pth"), str(tmp_path / "out"), *words]) == 0
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["head.bias"], averaged["head.bias"])


def test_vim_of_another_image_size(tmp_path: Path) -> None:
    save_file(timm.create_model("vim_tiny", img_size=96, in_chans=1).state_dict(), tmp_path / "vim.safetensors")
    done = convert_file(tmp_path / "vim.safetensors", tmp_path / "out", name="vim_tiny")
    assert done.parity.inputs == ((1, 1, 96, 96),)
    assert done.parity.error == 0
    assert not done.account.computed


def test_first_release_of_vmamba(tmp_path: Path) -> None:
    renamed = {"norm": "ln_1", "op": "self_attention"}
    state: dict[str, Tensor] = {}
    for key, value in timm.create_model("vmamba_tiny_vanilla", num_classes=3).state_dict().items():
        key = key.replace("patch_embed.0.", "patch_embed.proj.").replace("patch_embed.2.", "patch_embed.norm.")
        for new, old in renamed.items():
            key = re.sub(rf"^(layers\.\d+\.blocks\.\d+)\.{new}\.", rf"\1.{old}.", key)
        state[key] = value
    torch.save({"model": state}, tmp_path / "vssm.pth")
    done = convert_file(tmp_path / "vssm.pth", tmp_path / "out")
    assert done.name == "vmamba_tiny_vanilla"
    assert ("layers.0.blocks.0.norm.weight", "layers.0.blocks.0.ln_1.weight") in done.account.renamed
    assert len(done.account.kept) + len(done.account.renamed) == len(state)
    assert done.parity.error == 0


@pytest.mark.parametrize("kind", ["bot", "enc"])
def test_umamba_of_nnunet(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = umamba(kind)
    checkpoint = nnunet_checkpoint(model)
    torch.save(checkpoint, tmp_path / "checkpoint_final.pth")
    assert main(["convert", str(tmp_path / "checkpoint_final.pth"), str(tmp_path / "out")]) == 0
    text = said(capsys.readouterr().out)
    own, all_keys = len(model.state_dict()), len(checkpoint["network_weights"])
    assert f"in {own} tensors, loaded strictly" in text
    assert f"left out: equal to one of these {all_keys - own} " in text
    assert "left out: nothing reads them 0" in text
    assert "largest difference 0.0e+00" in text
    loaded, x = load_pretrained(tmp_path / "out"), torch.rand(1, 2, 8, 16, 16)
    assert type(loaded) is type(model)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(loaded(x), model.eval()(x), strict=True))


def test_umamba_needs_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, plans = tmp_path / "weights.safetensors", tmp_path / "plans.json"
    save_file(umamba("enc").state_dict(), file)
    assert main(["convert", str(file), str(tmp_path / "out")]) == 2
    assert "--plans plans.json and --configuration" in said(capsys.readouterr().err)
    plans.write_text(json.dumps(PLANS))
    assert main(["convert", str(file), str(tmp_path / "out"), "--plans", str(plans), "--configuration", "2d"]) == 2
    assert "choose from 3d_fullres, 3d_cascade_fullres" in said(capsys.readouterr().err)
    words = ["--plans", str(plans), "--configuration", "3d_cascade_fullres"]
    assert main(["convert", str(file), str(tmp_path / "out"), *words]) == 0
    plans.write_text("{")
    assert main(["convert", str(file), str(tmp_path / "out"), "--overwrite", *words]) == 2
    assert "plans.json: not readable JSON" in said(capsys.readouterr().err)


def test_plans_of_later_nnunet_list_the_arguments() -> None:
    model = umamba("enc")
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    old = PLANS["configurations"]["3d_fullres"]
    network = {
        "features_per_stage": [4, 8, 8],
        "kernel_sizes": old["conv_kernel_sizes"],
        "strides": old["pool_op_kernel_sizes"],
        "n_conv_per_stage": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
    }
    new = {"configurations": {"3d": {"patch_size": [8, 16, 16], "architecture": {"arch_kwargs": network}}}}
    assert arguments_from_plans(new, "3d", shapes) == arguments_from_plans(PLANS, "3d_fullres", shapes)


def test_published_fusion_becomes_the_lean_network(tmp_path: Path) -> None:
    published = FusionMamba(depths=(1, 2), depths_decoder=(1, 1), dims=(8, 16), faithful=True)
    torch.save(published.state_dict(), tmp_path / "fusion.pth")
    done = convert_file(tmp_path / "fusion.pth", tmp_path / "out")
    assert done.account.dropped
    assert "1 tensors computed from the file" in (tmp_path / "out" / "README.md").read_text()
    assert all("in_proj2" in key for key in done.account.computed)
    assert done.parity.error == 0
    loaded, pair = load_pretrained(tmp_path / "out"), [torch.rand(1, 1, 32, 32) for _ in range(2)]
    assert isinstance(loaded, FusionMamba)
    assert not loaded.faithful
    with torch.no_grad():
        torch.testing.assert_close(loaded(*pair), published.eval()(*pair))


@pytest.mark.parametrize(
    ("state", "name", "told"),
    [
        ({"w": torch.zeros(2)}, "", "no model has such tensors: give --model"),
        ({"w": torch.zeros(2)}, "vim_tiny", "do not fit this VisionMamba"),
        ({"w": torch.zeros(2)}, "vim_huge", "--model vim_huge: not known"),
        ({"w": torch.zeros(2)}, "FusionMamba", "no weights of FusionMamba"),
        ({"pos_embed": torch.zeros(1, 12, 192)}, "vim_tiny", "no square grid"),
        ({"epoch": 3}, "", "no state dict found"),
        (nnunet_checkpoint(umamba("bot")), "UMambaEnc", "these are weights of UMambaBot"),
    ],
)
def test_files_that_fit_no_model(tmp_path: Path, state: dict[str, Any], name: str, told: str) -> None:
    torch.save(state, tmp_path / "some.pth")
    with pytest.raises(UserError, match=told):
        convert_file(tmp_path / "some.pth", tmp_path / "out", name=name)
    assert not (tmp_path / "out").exists()


def test_damaged_numbers_are_told(tmp_path: Path) -> None:
    model = umamba("bot")
    model.decoder.seg_layers[0].bias.data[0] = torch.nan
    torch.save(nnunet_checkpoint(model), tmp_path / "some.pth")
    with pytest.raises(UserError, match=r"non-finite values in decoder\.seg_layers\.0\.bias"):
        convert_file(tmp_path / "some.pth", tmp_path / "out")


class Reduce:
    """Unpickling it calls os.system."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self.canary}",)


class Build(Reduce):
    """Unpickling it makes an object and gives that a state, which runs code."""

    def __reduce__(self) -> Any:
        return object.__new__, (Build,), {"canary": str(self.canary)}

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["canary"]).touch()


class Disguised(Reduce):
    """Calls what stands in for NumPy's numbers with code in the place of bytes."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return np.float64(0).__reduce__()[0], (np.dtype("O"), Reduce(self.canary))


class Module(nn.Module):
    """A whole model, saved as such: loading it would import and run its class."""

    def __init__(self, canary: Path) -> None:
        super().__init__()
        self.trick = Reduce(canary)


TRICKS: dict[str, Callable[[Path], Any]] = {
    "reduce": Reduce,
    "build": Build,
    "numpy": Disguised,
    "module": Module,
    "namespace": lambda canary: argparse.Namespace(hook=Reduce(canary)),
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("trick", TRICKS)
def test_no_code_of_a_checkpoint_runs(
    tmp_path: Path, trick: str, zipped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    file, canary = tmp_path / "weights.pth", tmp_path / "canary"
    content = {"model": {"w": torch.zeros(1)}, "args": TRICKS[trick](canary)}
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    assert main(["convert", str(file), str(tmp_path / "out")]) == 2
    assert not canary.exists(), "code in the file ran"
    assert not (tmp_path / "out").exists()
    assert "weights.pth: refused, since loading it could run code" in said(capsys.readouterr().err)
    with suppress(TypeError):  # NumPy refuses an object for a number, after that was made
        torch.load(file, weights_only=False)
    assert canary.exists(), "the canary must sing when the file is unpickled"


def test_numbers_of_numpy_are_read_and_nothing_else() -> None:
    for value in (np.float64(0.5), np.float32(2), np.int64(-3), np.bool_(True)):
        _, (dtype, data) = value.__reduce__()
        assert number(NumberType(dtype.str[1:]), data) == value.item()
    big = NumberType("f8")
    big.__setstate__((3, ">", None))
    assert number(big, np.array(1.5, ">f8").tobytes()) == 1.5
    for code in ("O", "V8", "U3", "f"):
        with pytest.raises(Exception, match="no plain number"):
            NumberType(code)
    with pytest.raises(Exception, match="damaged"):
        number(NumberType("f8"), b"123")


def test_searching_knows_the_stride_of_vim() -> None:
    with torch.device("meta"):
        state = timm.create_model("vim_tiny_stride8").state_dict()
    assert identify({"model": state}).name == "vim_tiny_stride8"
