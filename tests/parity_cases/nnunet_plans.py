"""Golden folders of nnU-Net plans: plans.json with fingerprints and the plans that nnU-Net makes from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ssmvision.recipes.planning.budgets import BUDGETS, Budget, BudgetName
from ssmvision.recipes.planning.fingerprint import Fingerprint
from ssmvision.recipes.planning.planner import Decisions, decide
from tests.parity_cases.common import Comparison, compare, load_json

__all__ = ["matches", "planned", "run"]

PLANNERS: dict[str, BudgetName] = {
    "ExperimentPlanner": "default",
    "nnUNetPlannerResEncM": "resenc_m",
    "nnUNetPlannerResEncL": "resenc_l",
    "nnUNetPlannerResEncXL": "resenc_xl",
}
NORMALIZATION = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "none": "NoNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}
SPACING_TOLERANCE = 1e-6
Case = dict[str, Any]


def matches(folder: Path) -> bool:
    plans = folder / "plans.json"
    return plans.is_file() and isinstance(load_json(plans), dict) and "planners" in load_json(plans)


def run(folder: Path) -> Iterator[Comparison]:
    """Every value of every plan, integers and names exactly."""
    content = load_json(folder / "plans.json")
    for case in content["cases"]:
        for name, expected in case["plans"].items():
            budget = _budget(name, content["planners"][name])
            yield from _compare(f"{case['name']} {name}", "plan", planned(case, budget), expected)


def _budget(name: str, planner: str) -> Budget:
    """The preset of a planner's class; a name that ends in a memory target, such as default_24GB, scales it."""
    target = re.search(r"_(\d+(?:\.\d+)?)GB$", name)
    return BUDGETS[PLANNERS[planner]].scaled(float(target[1]) if target else None)


def planned(case: Case, budget: Budget) -> dict[str, Any]:
    """Our plan of a case in nnU-Net's words."""
    dataset = case["dataset_json"]
    channels = dataset.get("channel_names", dataset.get("modality"))
    fingerprint = Fingerprint.from_json(case["fingerprint"])
    decisions = decide(fingerprint, list(channels.values()), len(dataset["labels"]), dataset["numTraining"], budget)
    return _official(decisions, budget.network)


def _official(decisions: Decisions, network: str) -> dict[str, Any]:
    blocks = "n_blocks_per_stage" if network == "ResidualEncoderUNet" else "n_conv_per_stage"
    configurations: dict[str, Any] = {
        name: {
            "batch_size": c.batch_size,
            "patch_size": c.patch_size,
            "median_image_size_in_voxels": c.median_shape,
            "spacing": c.spacing_mm,
            "normalization_schemes": [NORMALIZATION[scheme] for scheme in c.normalization],
            "use_mask_for_norm": c.use_mask_for_norm,
            "batch_dice": c.batch_dice,
            "network": network,
            "n_stages": len(c.strides),
            "features_per_stage": c.features_per_stage,
            "kernel_sizes": c.kernel_sizes,
            "strides": c.strides,
            "num_pool_per_axis": [sum(s == 2 for s in axis) for axis in zip(*c.strides, strict=True)],
            blocks: c.n_conv_per_stage,
            "n_conv_per_stage_decoder": c.n_conv_per_stage_decoder,
        }
        for name, c in decisions.configurations.items()
    }
    for name, stage in decisions.cascade.items():
        configurations[name] = {"inherits_from": stage.inherits_from, "previous_stage": stage.previous_stage}
        configurations[stage.previous_stage]["next_stage"] = name
    return {
        "transpose_forward": decisions.transpose_forward,
        "transpose_backward": decisions.transpose_backward,
        "original_median_spacing_after_transp": decisions.median_spacing_mm,
        "original_median_shape_after_transp": decisions.median_shape,
        "configurations": configurations,
    }


def _compare(case: str, where: str, got: Any, expected: Any) -> Iterator[Comparison]:
    if isinstance(expected, dict):
        ours = got if isinstance(got, dict) else {}
        odd = sorted(ours.keys() ^ expected.keys())
        yield Comparison(case, f"{where}: keys {odd}", len(odd), 0)
        for key in expected.keys() & ours.keys():
            yield from _compare(case, f"{where}.{key}", ours[key], expected[key])
    elif "spacing" in where.rpartition(".")[2]:
        yield compare(case, where, np.divide(got, expected), np.ones(len(expected)), SPACING_TOLERANCE)
    else:
        plain = _plain(got)
        yield Comparison(case, f"{where}: {plain} for {expected}", float(plain != expected), 0)


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
