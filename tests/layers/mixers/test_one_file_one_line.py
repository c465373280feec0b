"""A mixer is one file and one line of the table: added here, it is found everywhere; and no file repeats another's."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
import yaml
from torch import Tensor, nn

import ssmvision
from ssmvision.errors import UserError
from ssmvision.hub.arguments import arguments_of
from ssmvision.layers.mixers import build_mixer, mixer_names, register_mixer, registry
from ssmvision.layers.mixers.registry import TABLE
from ssmvision.models import HierarchicalSSM, UMambaBot
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import ModelConfig
from ssmvision.recipes.study.command import check_settings
from ssmvision.recipes.study.config import StudyConfig
from ssmvision.recipes.study.trainings import model_of, model_settings

FILES = sorted(Path(str(files(ssmvision))).joinpath("layers", "mixers").glob("*.py"))
# What scans, convolves or transforms along the positions.
ENGINES = {
    "cumsum",
    "cumprod",
    "logcumsumexp",
    "associative_scan",
    "unfold",
    "toeplitz",
    "fft",
    "rfft",
    "fftn",
    "rfftn",
}
ENGINES |= {f"conv{axes}d" for axes in (1, 2, 3)} | {"selective_scan_nd", "ssd_nd", "long_conv_nd", "modes_taps"}


class Roll(nn.Module):
    """Every position gets the channels of one before it."""

    def __init__(self, dim: int, spatial_dims: int, *, step: int = 1) -> None:
        super().__init__()
        self.step, self.proj = step, nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        rolled: Tensor = self.proj(x.roll(self.step, 1))
        return rolled


@pytest.fixture
def roll(monkeypatch: pytest.MonkeyPatch) -> str:
    """The mixer of a new file roll.py and its line."""
    module = ModuleType("roll")
    module.Roll = Roll  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ssmvision.layers.mixers.roll", module)
    monkeypatch.setitem(TABLE, "roll", ("roll", "Roll", "map"))
    return "roll"


def steps(model: nn.Module) -> list[int]:
    return [module.step for module in model.modules() if isinstance(module, Roll)]


def test_backbones_have_a_new_mixer(roll: str) -> None:
    small = {"in_chans": 1, "num_classes": 2, "mixer": roll}
    iso = timm.create_model(
        "ssm_iso_tiny", img_size=8, patch_size=2, embed_dim=8, depth=2, mixer_args={"step": 3}, **small
    )
    assert steps(iso) == [3, 3]
    volumes = HierarchicalSSM(8, spatial_dims=3, patch_size=2, depths=(1, 1), dims=(4, 8), layout="samba", **small)
    assert steps(volumes) == [1]
    for model, size in ((iso, (8, 8)), (volumes, (9, 8, 10))):
        assert model(torch.zeros(1, 1, *size)).shape == (1, 2)
    with pytest.raises(ValueError, match="mixer 'roll' has no option 'stride'; it has step"):
        timm.create_model("ssm_iso_tiny", mixer=roll, mixer_args={"stride": 2})
    with pytest.raises(ValueError, match="mixer 'roll' has no option 'gate'"):
        timm.create_model("ssm_iso_tiny", mixer=roll, gate="glu")


def test_umamba_and_its_recipe_have_a_new_mixer(roll: str, tmp_path: Path) -> None:
    model = ModelConfig(features_per_stage=(2, 4), mixer=roll, mixer_args={"step": 2})
    architecture = plan_network(model, (8, 8, 8), (1.0, 1.0, 1.0), 1, 2)
    network = build_network(architecture)
    assert isinstance(network, UMambaBot)
    assert steps(network) == [2]
    again = UMambaBot(**arguments_of(network))
    assert steps(again) == [2]
    again.load_state_dict(network.state_dict())
    assert "mixer_args" not in plan_network(ModelConfig(), (64,) * 3, (1.0,) * 3, 1, 2)["arguments"]
    study = StudyConfig(tmp_path, "lungs", networks=("UMambaBot", "UMambaBot/roll"), mixer_args={roll: {"step": 2}})
    check_settings(study)
    assert model_of(study, "UMambaBot/roll").mixer_args == {"step": 2}
    assert "mixer_args" not in model_settings(model_of(study, "UMambaBot"))
    with pytest.raises(UserError, match=r"mixer_args: no network has the mixer 'roll'"):
        check_settings(StudyConfig(tmp_path, "lungs", networks=("UMambaBot",), mixer_args={roll: {}}))
    with pytest.raises(UserError, match=r"model UMambaBot: mixer 'roll' has no option 'width'"):
        build_network(plan_network(ModelConfig(mixer=roll, mixer_args={"width": 2}), (64,) * 3, (1.0,) * 3, 1, 2))
    with pytest.raises(UserError, match=r"model\.mixer: DynUNet has no state-space layers"):
        plan_network(ModelConfig("DynUNet", mixer=roll), (64,) * 3, (1.0,) * 3, 1, 2)


def test_a_mixer_of_ones_own_package_registers_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    register_mixer("roll_of_mine", Roll, "map")
    assert "roll_of_mine" in mixer_names()
    torch.testing.assert_close(steps(build_mixer("roll_of_mine", 4, 1, step=5)), [5])
    with pytest.raises(ValueError, match="'roll_of_mine' is taken"):
        register_mixer("roll_of_mine", Roll)


def test_the_bake_off_on_volumes_has_every_mixer() -> None:
    text = files("ssmvision.configs").joinpath("study", "mixers_3d.yaml").read_text(encoding="utf-8")
    networks = yaml.safe_load(text)["networks"]
    assert sorted(networks) == sorted(f"UMambaBot/{name}" for name in mixer_names())


def test_every_line_of_the_table_has_its_file_and_a_docstring() -> None:
    for name, (module, builder, _) in TABLE.items():
        tree = ast.parse(next(path for path in FILES if path.stem == module).read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), name
        assert builder in ast.dump(tree), name


def test_no_two_mixers_share_a_scan_a_convolution_or_any_function() -> None:
    users, bodies = defaultdict(set), defaultdict(set)
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called.lower() in ENGINES:
                    users[called.lower()].add(path.name)
            if isinstance(node, ast.FunctionDef) and len(node.body) > 2:
                bodies[ast.dump(ast.Module(node.body[1:], []))].add(path.name)
            # A walk along the positions belongs to an operator.
            if isinstance(node, ast.For | ast.While):
                assert "shape" not in ast.dump(node.iter if isinstance(node, ast.For) else node.test), path.name
    assert {engine: names for engine, names in users.items() if len(names) > 1} == {}
    assert [names for names in bodies.values() if len(names) > 1] == []
