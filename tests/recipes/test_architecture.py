from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssmvision.errors import UserError
from ssmvision.recipes.segmentation.architecture import build_network, plan_network, plan_topology
from ssmvision.recipes.segmentation.config import ModelConfig

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "nnunet" / "topology.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: "x".join(str(n) for n in case["patch_size"]))
def test_stages_are_those_of_nnunet(case: dict[str, Any]) -> None:
    topology = plan_topology(case["patch_size"], case["spacing_mm"])
    assert [list(row) for row in topology.strides] == case["strides"]
    assert [list(row) for row in topology.kernel_sizes] == case["kernel_sizes"]


def test_isotropic_patch_halves_until_eight() -> None:
    # 40 x 56 x 40 at 1 mm is the published plan of the hippocampus task: three halvings.
    topology = plan_topology((40, 56, 40), (1, 1, 1))
    assert topology.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert set(topology.kernel_sizes) == {(3, 3, 3)}


def test_thick_slices_are_halved_later_with_flat_kernels() -> None:
    topology = plan_topology((128, 128, 16), (0.6, 0.6, 3.0))
    assert topology.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert topology.kernel_sizes[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))


def test_network_follows_the_plan_and_settings() -> None:
    plan = plan_network(ModelConfig(features_per_stage=(4, 8), mixer="none"), (16, 16, 8), (1, 1, 1), 2, 3)
    assert plan["arguments"]["strides"] == [[1, 1, 1], [2, 2, 2]]
    network = build_network(plan)
    assert sum(p.numel() for p in network.parameters()) > 0
    enc = plan_network(ModelConfig("UMambaEnc", (4, 8)), (16, 16), (1, 1), 1, 2)
    assert enc["arguments"]["input_size"] == [16, 16]


@pytest.mark.parametrize(
    ("config", "patch", "message"),
    [
        (
            ModelConfig(features_per_stage=(4, 8)),
            (17, 16, 16),
            r"\[17, 16, 16\] does not divide .*\[2, 2, 2\]; use \[18",
        ),
        (ModelConfig(features_per_stage=(4,) * 9), (16, 16, 16), r"9 stages, but .* allows 3; use fewer"),
        (ModelConfig(features_per_stage=(4, 8), strides=((1, 1, 1),)), (8, 8, 8), r"stages differ.*same number"),
        (
            ModelConfig(features_per_stage=(4, 8), strides=((1, 1), (2, 2))),
            (8, 8, 8),
            r"model\.strides.*give 3 numbers",
        ),
    ],
)
def test_settings_that_do_not_fit(config: ModelConfig, patch: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_network(config, patch, (1.0,) * len(patch), 1, 2)
