"""The plain U-Net baseline through the same recipe as our networks."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.networks.nets import DynUNet

from ssmvision.errors import UserError
from ssmvision.recipes.planning import measure
from ssmvision.recipes.planning.command import run as run_plan
from ssmvision.recipes.planning.config import PlanConfig
from ssmvision.recipes.segmentation import train
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from ssmvision.recipes.segmentation.dynunet import PlainUNet
from ssmvision.recipes.segmentation.infer import load_model
from ssmvision.recipes.segmentation.volumes import read_image
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = ModelConfig("DynUNet", features_per_stage=(4, 8, 8))


def network(dims: int = 3) -> PlainUNet:
    built = build_network(plan_network(CONFIG, (16,) * dims, (1.0,) * dims, 2, 3))
    assert isinstance(built, PlainUNet)
    return built


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_have_their_own_size_and_inference_one_output(dims: int) -> None:
    model, x = network(dims), torch.randn(2, 2, *(16,) * dims)
    outputs = model(x)
    assert [tuple(o.shape) for o in outputs] == [(2, 3, *(16,) * dims), (2, 3, *(8,) * dims)]
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None for p in model.parameters())
    model.deep_supervision = False
    assert tuple(model(x).shape) == (2, 3, *(16,) * dims)
    # Nothing of the graph stays behind, which a copy for inference could not take along.
    copy.deepcopy(model)


def test_it_is_monais_network_and_saves_each_weight_once() -> None:
    torch.manual_seed(0)
    model = network().eval()
    plain = DynUNet(3, 2, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], deep_supervision=True)
    fitting = {key: value for key, value in plain.state_dict().items() if key in model.state_dict()}
    model.load_state_dict(fitting)
    x = torch.randn(1, 2, 16, 16, 16)
    torch.testing.assert_close(model(x), plain.eval()(x))
    stored = [value.data_ptr() for value in model.state_dict().values()]
    assert len(stored) == len(set(stored))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixer": "s4nd"}, r"model\.mixer: DynUNet has no state-space layers .* leave both out"),
        ({"n_conv_per_stage": (1, 3, 4)}, r"n_conv_per_stage: \[1, 3, 4\] does not fit DynUNet, which has 2"),
        ({"features_per_stage": (4, 8)}, r"model DynUNet: DynUNet needs 3 stages or more, got 2"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network(plan_network(replace(CONFIG, **changes), (16,) * 3, (1.0,) * 3, 1, 2))


def test_planned_trained_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DRAWS", 1000)
    root, plan = nnunet_folder(tmp_path / "data", [(16, 20, 16)] * 2), tmp_path / "plan.json"
    with pytest.raises(UserError, match=r"network: DynUNet is nnU-Net's plain U-Net, which budget resenc_m"):
        run_plan(PlanConfig(root, plan, "resenc_m", network="DynUNet"))
    planned = run_plan(PlanConfig(root, plan, network="DynUNet", workers=1))
    assert planned.configurations["3d_fullres"].n_conv_per_stage == (2, 2, 2)
    trainer = TrainerConfig(max_epochs=1, steps_per_epoch=1, accelerator="cpu", threads=1)
    result = train.run(TrainConfig(DataConfig(root), tmp_path / "run", trainer=trainer, plan=plan))
    model = load_model(result.weights)
    volume = read_image([root / "imagesTr" / "case_0_0000.nii.gz"])
    assert model(volume.data, volume.grid.affine).shape == volume.grid.shape
    assert np.isfinite(model.logits(volume.data, volume.grid.affine).numpy()).all()
