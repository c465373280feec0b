"""A plan's settings in a training: brought to the arrays' axes, refused where a setting says otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from ssmvision.cli import main
from ssmvision.errors import UserError
from ssmvision.recipes.planning import measure
from ssmvision.recipes.planning.command import make_plan
from ssmvision.recipes.planning.config import PlanConfig
from ssmvision.recipes.planning.fingerprint import Fingerprint, Intensities
from ssmvision.recipes.planning.plan import Plan
from ssmvision.recipes.planning.plan_file import plan_text
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import AugmentConfig, DataConfig, ModelConfig, TrainConfig, TrainerConfig
from ssmvision.recipes.segmentation.datalist import Case, Dataset
from ssmvision.recipes.segmentation.planned import apply_plan, planned_preprocessing
from ssmvision.recipes.segmentation.preprocessing import ChannelScale, Preprocessing, scale_channel
from tests.recipes.synthetic import nnunet_folder

CT = Intensities(60.0, 55.0, 100.0, -900.0, 2000.0, -300.0, 300.0)
DATASET = Dataset(Path("d/dataset.json"), ("CT",), {"background": 0, "liver": 1}, (Case("a", ()),) * 20)


def make(spacing: tuple[float, ...], shape: tuple[int, ...], **settings: Any) -> Plan:
    """A plan of 20 equal cases (z, y, x)."""
    return make_plan(PlanConfig(Path(), **settings), DATASET, Fingerprint((spacing,) * 20, (shape,) * 20, (CT,), 1.0))


def training(plan: Plan, tmp_path: Path, **settings: Any) -> TrainConfig:
    path = tmp_path / "plan.json"
    path.write_text(plan_text(plan))
    return TrainConfig(DataConfig(Path("d")), tmp_path / "run", plan=path, **settings)


def test_thick_slices_along_z(tmp_path: Path) -> None:
    plan = make((5.0, 0.8, 0.7), (24, 200, 220), mixer="vssd")
    config = apply_plan(training(plan, tmp_path))
    planned = plan.configurations["3d_fullres"]
    assert plan.axes == ("z", "y", "x")
    assert config.data.orientation == "RAS"
    assert config.data.spacing_mm == (0.7, 0.8, 5.0)
    assert config.patch_size == planned.patch_size[::-1]
    assert (config.trainer.batch_size, config.trainer.batch_dice) == (planned.batch_size, planned.batch_dice)
    assert config.model.strides == tuple(row[::-1] for row in planned.strides)
    assert config.model.kernel_sizes is not None
    assert config.model.kernel_sizes[0] == (3, 3, 1)
    assert (config.model.features_per_stage, config.model.mixer) == (planned.features_per_stage, "vssd")
    assert apply_plan(replace(config)) == config


def test_thick_slices_along_x_keep_the_arrays_axes_in_3d(tmp_path: Path) -> None:
    plan = make((0.8, 0.9, 5.0), (200, 220, 24))
    assert plan.axes == ("x", "z", "y")
    config = apply_plan(training(plan, tmp_path))
    assert (config.data.orientation, config.data.spacing_mm) == ("RAS", (5.0, 0.9, 0.8))
    x, z, y = plan.configurations["3d_fullres"].patch_size
    assert config.patch_size == (x, y, z)


def test_slices_across_x_turn_the_cases_in_2d(tmp_path: Path) -> None:
    plan = make((0.8, 0.9, 5.0), (200, 220, 24))
    config = apply_plan(training(plan, tmp_path, configuration="2d"))
    # The last two axes of the plan are z and y; arrays have y, z and then x, along which the slices lie.
    assert (config.data.orientation, config.data.spacing_mm) == ("ASR", (0.9, 0.8))
    assert config.patch_size == plan.configurations["2d"].patch_size[::-1]
    with pytest.raises(UserError, match=r"flip_axes: \[0\] may mean other axes, as .* turns cases to ASR"):
        apply_plan(training(plan, tmp_path, configuration="2d", augment=AugmentConfig(flip_axes=(0,))))
    stored = make((0.8, 0.9, 5.0), (200, 220, 24), orientation=None)
    assert apply_plan(training(stored, tmp_path)).data.orientation is None
    with pytest.raises(UserError, match=r"slices lie across x, the axis as stored; make the plan with --orientation"):
        apply_plan(training(stored, tmp_path, configuration="2d"))


def test_residual_preset_builds_its_network(tmp_path: Path) -> None:
    plan = make((1.0, 1.0, 1.0), (40, 48, 32), budget="resenc_m", network="UMambaEnc", mixer="none")
    config = apply_plan(training(plan, tmp_path, model=ModelConfig("UMambaEnc")))
    assert config.model.n_conv_per_stage == (1, 3, 4, 6)
    assert config.data.spacing_mm == (1.0, 1.0, 1.0)
    architecture = plan_network(config.model, config.patch_size, (1.0, 1.0, 1.0), 1, 2)
    assert json.loads(json.dumps(architecture)) == architecture
    with torch.device("meta"):
        network = build_network(architecture)
    assert sum(p.numel() for p in network.parameters()) > 1e6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": (64, 64, 64)}, r"patch_size: \(64, 64, 64\) contradicts \(.*\) of the plan .*; edit the plan"),
        ({"trainer": TrainerConfig(batch_size=9)}, r"trainer\.batch_size: 9 contradicts 2 of the plan"),
        ({"model": ModelConfig("UMambaEnc")}, r"model\.name: UMambaEnc contradicts UMambaBot"),
        ({"data": DataConfig(Path("d"), normalization="zscore")}, r"normalization: 'zscore' contradicts the plan"),
        ({"configuration": "4d"}, r"configuration: '4d' is not in .*; use one of 2d, 3d_fullres"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    config = training(make((1.0, 1.0, 1.0), (100, 100, 100)), tmp_path)
    with pytest.raises(UserError, match=message):
        apply_plan(replace(config, **settings))


def test_scales_come_from_the_plan(tmp_path: Path) -> None:
    config = training(make((1.0, 1.0, 1.0), (40, 40, 40)), tmp_path)
    fitted = Preprocessing("RAS", None, (ChannelScale("none"),))
    planned = planned_preprocessing(config, DATASET, fitted)
    assert planned.scales == (ChannelScale("ct", -300.0, 300.0, 60.0, 100.0),)
    assert planned_preprocessing(replace(config, plan=None), DATASET, fitted) is fitted
    with pytest.raises(UserError, match=r"plan\.json: channels are \['CT'\], but \['MRI'\] in d/dataset\.json"):
        planned_preprocessing(config, replace(DATASET, channels=("MRI",)), fitted)
    path = tmp_path / "plan.json"
    values = json.loads(path.read_text())
    for scheme, masked, expected in (
        ("zscore", True, ChannelScale("zscore_nonzero")),
        ("zscore", False, ChannelScale("zscore")),
        ("rescale_to_0_1", False, ChannelScale("rescale")),
        ("rgb_to_0_1", False, ChannelScale("ct", 0.0, 255.0, 0.0, 255.0)),
        ("none", False, ChannelScale("none")),
    ):
        values["configurations"]["3d_fullres"].update(normalization=[scheme], use_mask_for_norm=[masked])
        path.write_text(json.dumps(values))
        assert planned_preprocessing(config, DATASET, fitted).scales == (expected,)


def test_scales_of_an_object_in_zeros() -> None:
    rng = np.random.default_rng(0)
    data = np.zeros((2, 12, 12, 12), np.float32)
    data[:, 2:10, 2:10, 2:10] = rng.normal(100, 10, (2, 8, 8, 8))
    data[:, 5:7, 5:7, 5:7] = 0  # a hole counts as inside
    how = Preprocessing(None, None, (ChannelScale("zscore_nonzero"), ChannelScale("rescale")))
    scaled, rescaled = how.image(data, np.eye(4)).numpy()
    inside = data[0, 2:10, 2:10, 2:10]
    np.testing.assert_allclose(scaled[2:10, 2:10, 2:10], (inside - inside.mean()) / inside.std(), atol=1e-5)
    assert np.count_nonzero(scaled) == inside.size
    np.testing.assert_allclose(rescaled, data[1] / data[1].max(), atol=1e-6)
    assert Preprocessing.from_json(json.loads(json.dumps(how.to_json()))) == how
    with pytest.raises(ValueError, match="needs the mask"):
        scale_channel(MetaTensor(torch.zeros(1, 2, 2, 2)), ChannelScale("zscore_nonzero"))


def test_check_plan_train_and_resume_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "DRAWS", 1000)
    data, plan, out = nnunet_folder(tmp_path / "data", [(10, 12, 8)] * 3), tmp_path / "plan.json", tmp_path / "run"
    assert main(["check", str(data), "--workers", "1"]) == 0
    assert main(["plan", str(data), "--workers", "1", "--out", str(plan), "--mixer", "none"]) == 0
    values = json.loads(plan.read_text())
    small = values["configurations"]["3d_fullres"]
    stages = len(small["strides"])
    small.update(features_per_stage=[4] * stages, batch_size=1)
    plan.write_text(json.dumps(values))
    words = ["train", "--data.root", str(data), "--plan", str(plan), "--out", str(out), "--trainer.threads", "1"]
    words += ["--trainer.max_epochs", "1", "--trainer.steps_per_epoch", "1", "--trainer.accelerator", "cpu"]
    assert main(words) == 0
    card = json.loads((out / "model.json").read_text())
    assert card["patch_size"] == small["patch_size"][::-1]
    assert card["architecture"]["arguments"]["features_per_stage"] == [4] * stages
    assert card["architecture"]["arguments"]["strides"] == [row[::-1] for row in small["strides"]]
    assert main([*words, "--trainer.max_epochs", "2", "--resume"]) == 0
    assert len((out / "metrics.csv").read_text().splitlines()) == 3
    capsys.readouterr()
    values["foreground_intensities"][0]["mean"] += 1
    plan.write_text(json.dumps(values))
    assert main([*words, "--resume"]) == 2
    assert "used_plan.json, with which the run was started" in capsys.readouterr().err
    used = [str(out / "used_plan.json") if word == str(plan) else word for word in words]
    assert main([*used, "--overwrite"]) == 2
    assert "belongs to the run folder itself" in capsys.readouterr().err
