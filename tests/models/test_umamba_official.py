"""U-Mamba against the official code: outputs, gradients, parameter counts, checkpoint keys, arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssmvision import convert_state_dict
from ssmvision.models.umamba import UMambaBot, UMambaEnc
from tests.parity_cases import umamba
from tests.parity_cases.common import filled_state, load_json

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDEN = Path(__file__).parent.parent / "golden" / "umamba"
CASES = {case["config"]["name"]: case for case in load_json(GOLDEN / "manifest.json")["cases"]}
NETWORKS = [name for name, case in CASES.items() if case["config"]["net"] != "MambaLayer"]

CT_STRIDES = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]
CT: dict[str, Any] = {
    "spatial_dims": 3,
    "out_channels": 14,
    "strides": CT_STRIDES,
    "kernel_sizes": [(1, 3, 3), *[(3, 3, 3)] * 5],
}
C3: list[int | None] = [32, 64, 128, 256, 320, 210]
# settings, patch, millions of parameters in Bot, its layer, Enc, its layers, and the width of Enc's layers per stage
COUNTS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[float, ...], list[int | None]]] = {
    "ct": (CT, (40, 224, 192), (41.95, 0.68, 42.84, 1.57), C3),
    "mr": (CT, (48, 160, 224), (41.95, 0.68, 42.84, 1.57), C3),
    "mr2d": (
        {"spatial_dims": 2, "out_channels": 14, "n_stages": 7},
        (320, 320),
        (47.53, 1.70, 47.02, 1.18),
        [32, None, 128, None, 400, None, 25],
    ),
    "endoscopy": (
        {"spatial_dims": 2, "in_channels": 3, "out_channels": 8, "n_stages": 7},
        (384, 640),
        (47.52, 1.70, 47.68, 1.85),
        [32, None, 128, None, 512, None, 60],
    ),
    "microscopy": (
        {"spatial_dims": 2, "in_channels": 3, "out_channels": 3, "n_stages": 8},
        (512, 512),
        (64.80, 1.70, 64.01, 0.91),
        [None, 64, None, 256, None, 256, None, 16],
    ),
}


@pytest.fixture(scope="module")
def comparisons() -> dict[str, list[Any]]:
    assert umamba.matches(GOLDEN)
    by_case: dict[str, list[Any]] = {name: [] for name in CASES}
    for comparison in umamba.run(GOLDEN):
        by_case[comparison.case].append(comparison)
    return by_case


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, comparisons: dict[str, list[Any]]) -> None:
    assert len(comparisons[name]) > len(CASES[name]["gradients"])
    assert [c for c in comparisons[name] if not c.passed] == []


def _millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name: str) -> None:
    settings, size, expected, widths = COUNTS[name]
    settings = {"in_channels": 1, **settings}
    with torch.device("meta"):
        bot, enc = UMambaBot(**settings), UMambaEnc(**settings, input_size=size)
    layers = enc.encoder.mamba_layers
    assert (_millions(bot), _millions(bot.mamba_layer), _millions(enc), _millions(layers)) == expected
    assert [getattr(layer, "dim", None) for layer in layers] == widths
    assert enc.fixed_input_size == size


def test_forced_block_counts() -> None:
    settings: dict[str, Any] = {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5}
    with torch.device("meta"):
        model: Any = UMambaBot(3, 1, 2, **settings)
    assert [len(stage) for stage in model.encoder.stages] == [2, 2, 2, 1, 1, 1]
    assert [len(stage) for stage in model.decoder.stages] == [2, 2, 2, 1, 1]
    assert len(model.encoder.stem) == 2
    assert settings == {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5}


@pytest.mark.parametrize("name", NETWORKS)
def test_official_state_dict_round_trip(name: str) -> None:
    case = CASES[name]
    model, official = umamba.build(case["config"]), filled_state(case)
    assert isinstance(model, UMambaBot | UMambaEnc)
    model.load_state_dict(model.convert_official_state_dict(official))
    exported = model.official_state_dict()
    assert list(exported) == [t["key"] for t in case["tensors"]]
    assert all(torch.equal(exported[key], official[key]) for key in official)


@pytest.mark.parametrize(
    "alias",
    ["decoder.encoder.stem.0.conv1.weight", "encoder.stem.1.conv1.all_modules.0.bias"],
    ids=["decoder", "block"],
)
def test_differing_duplicates_are_refused(alias: str) -> None:
    case = CASES["enc2d"]
    model, official = umamba.build(case["config"]), filled_state(case)
    assert isinstance(model, UMambaEnc)
    official[alias] = official[alias] + 1
    with pytest.raises(ValueError, match=alias):
        model.convert_official_state_dict(official)


def test_whole_training_checkpoint_loads_strictly() -> None:
    case = CASES["enc2d"]
    model, official = umamba.build(case["config"]), filled_state(case)
    checkpoint = {"network_weights": {f"_orig_mod.{key}": value for key, value in official.items()}, "current_epoch": 3}
    model.load_state_dict(convert_state_dict(model, checkpoint))
    assert torch.equal(model.get_parameter("encoder.stem.0.conv1.weight"), official["encoder.stem.0.conv1.weight"])


def test_checkpoint_without_duplicates_is_accepted() -> None:
    case = CASES["enc2d"]
    model = umamba.build(case["config"])
    assert isinstance(model, UMambaEnc)
    plain = {t["key"]: value for t, value in zip(case["tensors"], filled_state(case).values(), strict=True)}
    plain = {key: plain[key] for key in model.state_dict()}
    assert model.convert_official_state_dict(plain).keys() == plain.keys()


def test_foreign_keys_are_named() -> None:
    case = CASES["bot2d_nods"]
    twin = UMambaBot(2, 3, 2, features_per_stage=[8, 16, 32], n_conv_per_stage=1, mixer="none")
    with pytest.raises(ValueError, match=r"mamba_layer\.norm\.weight"):
        twin.convert_official_state_dict(filled_state(case))


def test_official_arguments() -> None:
    kernels, strides, blocks = [[3, 3]] * 3, [[1, 1], [2, 2], [2, 2]], [2, 2, 2]
    official: dict[str, Any] = {
        "input_channels": 1,
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": kernels,
        "strides": strides,
        "n_conv_per_stage": blocks,
        "num_classes": 2,
        "n_conv_per_stage_decoder": [2, 2],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
        "stem_channels": None,
    }
    model = UMambaEnc.from_official_kwargs(input_size=(16, 16), **official)
    assert [tuple(o.shape) for o in model(torch.zeros(1, 1, 16, 16))] == [(1, 2, 16, 16), (1, 2, 8, 8)]
    assert blocks == [2, 2, 2]
    assert UMambaBot.from_official_kwargs(**official, mixer="none").no_weight_decay() == set()
    for wrong in (
        {"norm_op": nn.BatchNorm2d},
        {"nonlin": nn.GELU},
        {"conv_op": nn.Conv1d},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong.values())).__name__):
            UMambaBot.from_official_kwargs(**{**official, **wrong})
    with pytest.raises(ValueError, match="dropout"):
        UMambaBot.from_official_kwargs(**{**official, "dropout_op": nn.Dropout2d})
    with pytest.raises(ValueError, match="negative_slope"):
        UMambaBot.from_official_kwargs(**{**official, "nonlin_kwargs": {"negative_slope": 0.2}})
    with pytest.raises(TypeError, match="patch"):
        UMambaBot.from_official_kwargs(**official, patch=3)


def test_conv_bias_reaches_the_identity_blocks_only() -> None:
    model = UMambaBot(2, 1, 2, features_per_stage=[4, 8], conv_bias=False)
    without = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d) and module.bias is None]
    assert without
    assert all(name.endswith((".conv1.conv", ".conv2.conv")) for name in without)
    assert not any("all_modules.0.bias" in key for key in model.official_state_dict())
