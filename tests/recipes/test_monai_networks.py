"""The baselines with stages of their own, through the same recipe as our networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from monai.networks.nets import MedNeXt, SegResNetDS

from ssmvision.errors import UserError
from ssmvision.recipes.planning import measure
from ssmvision.recipes.planning.command import run as run_plan
from ssmvision.recipes.planning.config import PlanConfig
from ssmvision.recipes.segmentation import train
from ssmvision.recipes.segmentation.architecture import build_network, plan_network
from ssmvision.recipes.segmentation.config import DataConfig, ModelConfig, TrainConfig, TrainerConfig
from ssmvision.recipes.segmentation.infer import load_model
from ssmvision.recipes.segmentation.monai_networks import own_stages
from tests.recipes.synthetic import nnunet_folder

pytestmark = pytest.mark.usefixtures("one_thread")
SEGRESNET = ModelConfig("SegResNet", features_per_stage=(4, 8, 8))
MEDNEXT = ModelConfig("MedNeXt", features_per_stage=(4, 8, 8))


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (SEGRESNET, [(16, 16, 8), (8, 8, 8)]),  # slices of 3 mm are not halved at first
        (MEDNEXT, [(16, 16, 8), (8, 8, 4), (4, 4, 2)]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_levels_have_their_own_size_and_inference_one_output(config: ModelConfig, sizes: list[tuple[int, ...]]) -> None:
    planned = plan_network(config, (16, 16, 8), (1.0, 1.0, 3.0), 2, 3)
    assert planned["arguments"]["features_per_stage"] == [4, 8, 16]
    model, x = build_network(planned), torch.randn(2, 2, 16, 16, 8)
    outputs = model(x)
    assert [tuple(o.shape) for o in outputs] == [(2, 3, *size) for size in sizes]
    sum(o.square().mean() for o in outputs).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert tuple(model.eval()(x).shape) == (2, 3, 16, 16, 8)
    single = build_network(plan_network(replace(config, deep_supervision=False), (16,) * 2, (1.0,) * 2, 2, 3))
    assert tuple(single(x[..., 0]).shape) == (2, 3, 16, 16)


def test_they_are_monais_networks() -> None:
    x = torch.randn(1, 1, 16, 16, 16)
    for config, plain in (
        (SEGRESNET, SegResNetDS(3, 4, 1, 2, norm="instance", blocks_down=(2, 2, 2), blocks_up=(2, 2), dsdepth=2)),
        (MEDNEXT, MedNeXt(3, 4, 1, 2, 2, 2, 2, 3, True, True, (2, 2), 2, (2, 2))),
    ):
        model = build_network(plan_network(config, (16,) * 3, (1.0,) * 3, 1, 2)).eval()
        model.load_state_dict(plain.state_dict())
        torch.testing.assert_close(model(x), plain.eval()(x))


def test_stages_stop_where_the_patch_no_longer_halves() -> None:
    assert own_stages("MedNeXt", (32, 32, 24), (1, 1, 1), 6) == 4
    assert own_stages("MedNeXt", (32, 32, 24), (1, 1, 1), 3) == 3
    assert own_stages("SegResNet", (64, 64, 12), (1, 1, 4), 6) == 5
    with pytest.raises(UserError, match=r"patch_size: \[15, 16, 16\] does not divide by 2, as MedNeXt needs"):
        plan_network(MEDNEXT, (15, 16, 16), (1.0,) * 3, 1, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(SEGRESNET, mixer="s4nd"), r"model\.mixer: SegResNet has no state-space layers .* leave both out"),
        (replace(MEDNEXT, n_conv_per_stage=(2, 2)), r"n_conv_per_stage: \[2, 2\] has 2 entries; give one number, or 3"),
    ],
)
def test_settings_that_do_not_fit(config: ModelConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_network(config, (16,) * 3, (1.0,) * 3, 1, 2)


def test_planned_trained_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "DRAWS", 1000)
    root, plan = nnunet_folder(tmp_path / "data", [(16, 20, 16)] * 2), tmp_path / "plan.json"
    with pytest.raises(UserError, match=r"network: MedNeXt has no state-space layers for mixer s4nd"):
        run_plan(PlanConfig(root, plan, network="MedNeXt", mixer="s4nd"))
    run_plan(PlanConfig(root, plan, "resenc_m", network="SegResNet", workers=1))
    trainer = TrainerConfig(max_epochs=1, steps_per_epoch=1, accelerator="cpu", threads=1)
    result = train.run(TrainConfig(DataConfig(root), tmp_path / "run", trainer=trainer, plan=plan))
    assert load_model(result.weights).card.architecture["name"] == "SegResNet"
