from __future__ import annotations

from importlib.resources import files

import pytest
from jsonargparse import ArgumentParser

from ssmvision.recipes.segmentation.architecture import plan_network
from ssmvision.recipes.segmentation.config import TrainConfig
from ssmvision.recipes.segmentation.run_folder import check_config

FOLDER = files("ssmvision.configs") / "segmentation"
NAMES = sorted(f.name for f in FOLDER.iterdir() if f.name.endswith(".yaml") and f.name != "demo.yaml")


@pytest.mark.parametrize("name", NAMES)
def test_shipped_settings_are_possible(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig, None, as_group=False)
    parser.add_argument("--config", action="config")
    values = parser.parse_args([f"--config={FOLDER / name}", "--data.root=raw", "--out=run"])
    settings = parser.instantiate(values)
    train = TrainConfig(
        settings.data, settings.out, settings.model, settings.augment, settings.trainer, settings.patch_size
    )
    check_config(train)
    plan = plan_network(train.model, train.patch_size, (1.0,) * len(train.patch_size), 1, 2)
    assert plan["name"] == train.model.name
    assert name.endswith(f"_{len(train.patch_size)}d.yaml")
